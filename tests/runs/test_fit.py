"""What only the data or the run's length can tell not to fit: one line with the option's path, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.runs.execute import execute
from tests.data.test_text import put

SHAKESPEARE = [
    "dataset=shakespeare_char", "data.verify=false", "data.download=false", "model.layers=1", "model.heads=1",
    "model.width=8", "batch_size=2", "steps=2", "device=cpu",
]  # fmt: skip
# (overrides, the line), for a text of 1000 characters, 900 of them to train on
TABLE = [
    (["dataset.context=50"], "dataset.context must be < 50, the length of the shortest split, got 50"),
    (["dataset.context=4000"], "dataset.context must be < 50, the length of the shortest split, got 4000"),
    (["dataset.context=10", "dataset.subset=891"], "dataset.subset must be null or <= 890, got 891"),
    (["dataset.context=0"], "dataset.context must be >= 1, got 0"),
]


@pytest.mark.parametrize(("words", "line"), TABLE, ids=[" ".join(words) for words, _ in TABLE])
def test_a_text_that_is_too_short(words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data", "to be or n" * 100)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be") as raised:
        execute(compose([*SHAKESPEARE, f"data.root={tmp_path / 'data'}", *words]))
    assert condense(raised.value) == line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_a_warm_up_as_long_as_the_run_is_the_longest(schedule: str, tmp_path: Path) -> None:
    words = [f"schedule={schedule}", f"paths.results={tmp_path}", "steps=3", "device=cpu"]
    assert execute(compose([*words, "schedule.warmup=3"]), lambda line: None).status == "ok"
    with pytest.raises(ValueError, match=r"^schedule\.warmup must be <= 3, the steps of the run, got 4$"):
        execute(compose([*words, "schedule.warmup=4"]), lambda line: None)
