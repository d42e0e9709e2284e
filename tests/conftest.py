"""Fixtures and rules for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clipbench.cli import outside
from clipbench.config import trust


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on a busy machine: one thread is faster than two that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own --config-dir and --allow end with it."""
    for name in (outside.VARIABLE, trust.VARIABLE):
        monkeypatch.setenv(name, "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
