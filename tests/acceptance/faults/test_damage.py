"""Files cut short while a run was unfinished or done: named, moved aside, and the run ends as an undisturbed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipbench.cli.compose import compose
from clipbench.errors import Stopped
from clipbench.runs.execute import Outcome, execute
from tests.runs.helpers import TINY, info, values


def run(results: Path, said: list[str] | None = None, stop_at: int | None = None) -> Outcome:
    config = compose([*TINY, "device=cpu", f"paths.results={results}"])
    watch = None if stop_at is None else lambda rows: bool(rows) and rows[-1]["step"] >= stop_at
    return execute(config, (said if said is not None else []).append, watch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole")).folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(Stopped):
        run(folder, stop_at=20)
    return folder


@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json", "metrics.parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_an_unfinished_run_with_a_damaged_file(
    name: str, keep: float, unfinished: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(unfinished, tmp_path / "copy")
    (path,) = (tmp_path / "copy").rglob(name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    said: list[str] = []
    outcome = run(tmp_path / "copy", said)
    assert outcome.status == info(outcome.folder)["status"] == "ok"
    assert values(outcome.folder) == values(whole)
    if name != "metrics.parquet":  # an unfinished run's rows are in its checkpoint
        assert any(str(path) in line and "is damaged" in line for line in said), said
        assert path.with_name(f"{name}.damaged-1").exists()


@pytest.mark.parametrize("name", ["run.json", "metrics.parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_a_finished_run_with_a_damaged_file_is_repeated(name: str, keep: float, whole: Path, tmp_path: Path) -> None:
    results = whole.parents[2]
    shutil.copytree(results, tmp_path / "copy")
    (path,) = (tmp_path / "copy").rglob(name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    said: list[str] = []
    outcome = run(tmp_path / "copy", said)
    assert not outcome.found
    assert values(outcome.folder) == values(whole)
    assert any(str(path) in line and "is damaged" in line for line in said), said
    assert run(tmp_path / "copy").found
