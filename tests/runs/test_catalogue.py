"""What counts as done: by status, code and options, in the record and in collected data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipbench.analysis import collect
from clipbench.runs import archive
from clipbench.runs.catalogue import Known, collected, earlier, find, look, same_code, settled
from clipbench.runs.record import State
from tests.analysis.synthetic import write_run

HERE = "f" * 16  # the code of `write_run`


def wanted(results: Path, run_id: str = "", code: str = HERE, stale: str = "rerun", retry: str = "always") -> Any:
    """What the catalogue reads of a request."""
    return SimpleNamespace(
        results=results, run_id=run_id, fingerprint=code, together_fingerprint="t" * 16, recorded={"seed": 0},
        folder=results / "runs" / "toy/cpu" / run_id,
        options=SimpleNamespace(experiment="toy/cpu", stale=stale, retry=retry),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code", "stale", "retry", "expected"),
    [
        ("ok", HERE, "rerun", "always", True),
        ("diverged", HERE, "rerun", "always", True),
        ("ok", "other", "rerun", "never", False),
        ("ok", "other", "keep", "always", True),
        ("running", HERE, "keep", "never", False),
        ("absent", HERE, "keep", "never", False),
        ("failed", HERE, "keep", "always", False),
        ("failed", "other", "rerun", "never", True),
    ],
)
def test_what_is_settled(status: str, code: str, stale: str, retry: str, expected: bool) -> None:
    state = State(status, {"fingerprint": HERE})
    assert settled(state, wanted(Path(), code=code, stale=stale, retry=retry)) is expected


def test_the_batched_program_counts_where_it_made_the_run() -> None:
    request = wanted(Path())
    assert same_code({"fingerprint": HERE}, request)
    assert same_code({"fingerprint": HERE, "together": 4, "together_fingerprint": "t" * 16}, request)
    assert not same_code({"fingerprint": HERE, "together": 4, "together_fingerprint": "other"}, request)
    assert same_code({"fingerprint": HERE, "together": None, "together_fingerprint": "other"}, request)
    assert not same_code({"fingerprint": "other", "together": 4, "together_fingerprint": "t" * 16}, request)


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """A request whose run was collected with some entries, and then its record edited; its record's folder."""

    def make(then: dict[str, Any], now: dict[str, Any], **options: str) -> tuple[Any, Path]:
        folder = write_run(tmp_path, attempt=1)
        edit(folder, **then)
        collect(tmp_path)
        edit(folder, **now)
        return wanted(tmp_path, folder.name, **options), folder

    return make


def test_a_finished_record_is_found_where_it_lies(both: Callable[..., Any]) -> None:
    request, folder = both({}, {})
    assert look(request).place == folder
    found = find(request, lambda line: None)
    assert found is not None
    assert (found.status, found.folder, found.found, found.info["attempt"]) == ("ok", folder, True, 1)
    assert not look(request).travelled


@pytest.mark.parametrize("status", ["running", "failed"])
def test_what_was_collected_counts_unless_the_record_tells_of_a_later_attempt(
    status: str, both: Callable[..., Any]
) -> None:
    request, _ = both({"attempt": 2}, {"status": status, "attempt": 2})
    known = look(request)
    assert (known.state.status, known.travelled, known.place) == ("ok", True, request.results / "data/toy__cpu.parquet")
    request, _ = both({"attempt": 2}, {"status": status, "attempt": 3})
    assert look(request) == Known(look(request).state, None)
    assert (look(request).state.status, look(request).travelled) == (status, False)
    assert find(request, lambda line: None) is None


@pytest.mark.parametrize("status", ["running", "failed"])
def test_what_was_collected_unfinished_is_no_result(status: str, both: Callable[..., Any]) -> None:
    request, _ = both({"status": status, "attempt": 4}, {"status": "running", "attempt": 1})
    assert collected(request).state.status == "absent"
    assert find(request, lambda line: None) is None
    assert earlier(request, lambda line: None).info["attempt"] == 4, "the number goes on from the latest known"


def test_a_new_attempt_goes_on_from_the_record_and_says_whose_code_was_collected(both: Callable[..., Any]) -> None:
    request, folder = both({"attempt": 5}, {"status": "failed", "attempt": 2}, code="other")
    said: list[str] = []
    state = earlier(request, said.append)
    assert (state.status, state.info["attempt"], said) == ("failed", 5, [])
    (folder / "run.json").unlink()
    state = earlier(request, said.append)
    assert (state.status, state.info) == ("absent", {"attempt": 5})
    assert said == [f"stale: the collected run's code is {HERE}, this is other; running it anew"]


def test_of_two_places_the_one_that_needs_no_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, shipped = tmp_path / "mine", tmp_path / "shipped"
    for root, entries in ((mine, {"fingerprint": "old", "attempt": 3}), (shipped, {"attempt": 1})):
        folder = write_run(root, **entries)
        collect(root)
    monkeypatch.setattr(archive, "SHIPPED", shipped)
    known = collected(wanted(mine, folder.name))
    assert (known.place, known.state.info["attempt"]) == (shipped / "data/toy__cpu.parquet", 1)
    known = collected(wanted(mine, folder.name, code="a third"))
    assert (known.place, known.state.info["attempt"]) == (mine / "data/toy__cpu.parquet", 3)
    nothing = collected(wanted(mine, "another"))
    assert (nothing.state, nothing.place) == (State("absent", {}), mine / "data/toy__cpu.parquet")
