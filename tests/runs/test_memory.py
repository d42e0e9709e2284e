"""The most memory in use is the run's own, in bytes on every system."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipbench.cli.compose import compose
from clipbench.runs import memory
from clipbench.runs.execute import execute
from tests.runs.helpers import TINY

LARGE = 400 * 2**20  # bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone starts the peak anew")
def test_a_run_s_peak_is_not_what_the_process_held_before(tmp_path: Path) -> None:
    before = memory.resident() or 0
    ballast = torch.ones(LARGE // 4)
    assert memory.peak(torch.device("cpu")) >= before + 0.9 * LARGE
    del ballast
    memory.trim()
    outcome = execute(compose([*TINY, "device=cpu", f"paths.results={tmp_path}"]), say=lambda line: None)
    assert before * 0.5 < outcome.info["peak_memory_bytes"] < before + 0.7 * LARGE


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_where_the_kernel_keeps_no_peak_the_unit_is_the_system_s(
    system: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Path, *arguments: Any, **options: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5000))
    assert memory.peak(torch.device("cpu")) == 5000 * unit
