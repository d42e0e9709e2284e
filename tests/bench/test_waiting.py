"""What waiting threads cost: each case in a process of its own under its policy, and the table made of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from clipbench.bench import waiting
from clipbench.bench.rebuild import rebuild


def test_every_case_is_measured_and_the_table_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {("default", 0): 0.057, ("default", 2): 0.5, ("passive", 0): 0.063, ("passive", 2): 0.12}
    beside: list[int] = []

    def seconds(policy: str, steps: int) -> list[float]:
        return [known[policy, beside[-1]]] * steps

    real = waiting.busy
    monkeypatch.setattr(waiting, "busy", lambda count: beside.append(count) or real(count))
    monkeypatch.setattr(waiting, "child_seconds", seconds)
    waiting.main(["--results", str(tmp_path), "--rounds", "2", "--steps", "3", "--beside", "2"])
    found = pd.read_parquet(tmp_path / "data" / "bench_waiting.parquet").set_index(["policy", "beside"])
    assert found["seconds"].to_dict() == known
    assert set(found["n"]) == {6}
    table = tmp_path / "tables" / "bench_waiting.md"
    text = table.read_text()
    assert "| spin, as by default | 57 [57, 57] | 500 [500, 500] |" in text
    assert "| sleep, as in commands that train | 63 [63, 63] | 120 [120, 120] |" in text
    table.unlink()
    assert rebuild(tmp_path) == ["bench_waiting"]
    assert table.read_text() == text


def test_the_processes_beside_are_gone_afterwards() -> None:
    with waiting.busy(2) as others:
        assert [other.poll() for other in others] == [None, None]
    assert all(other.poll() is not None for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("policy", waiting.POLICIES)
def test_a_child_measures_steps_under_its_policy(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")  # of the caller: it must not reach the child
    assert len(waiting.child_seconds(policy, 2)) == 2
