"""The examples in the docstrings of clippers and kernels run and give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = {"clipbench.clipping.norm", "clipbench.clipping.spectral", "clipbench.clipping.soft_spectral"}
KERNELS = {"clipbench.spectral.factored", "clipbench.spectral.clip"}


@pytest.mark.parametrize("name", sorted(MODULES | KERNELS))
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
