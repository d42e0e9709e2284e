"""A record's folder without a run: what it says of each state of its files, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clipbench.errors import RecordError, RunLocked, Unwritable
from clipbench.runs.record import COLUMNS, ENTRIES, NUMBERS, OddEntry, Record, State, parse_info

INFO: dict[str, Any] = {
    "run_id": "abc", "experiment": "toy/cpu", "method": "sgd", "seed": 0, "role": "single", "status": "ok",
}  # fmt: skip
ROWS = [
    dict(zip(COLUMNS, (10, 0.5, 160, 1.25, "train", "loss", 0.5), strict=True)),
    dict(zip(COLUMNS, (20, 1.0, 320, 2.5, "validation", "loss", math.inf), strict=True)),
]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def record(tmp_path: Path, said: list[str]) -> Record:
    return Record(tmp_path, said.append)


def test_what_is_written_is_read_again(record: Record, said: list[str]) -> None:
    record.write_info(INFO | {"data": {"root": Path("/x")}})
    record.write_metrics(ROWS)
    record.write_checkpoint({"step": 3, "weights": torch.arange(3.0)})
    record.write_config({"seed": 1, "a": [1, 2]})
    assert record.state() == State("ok", INFO | {"data": {"root": "/x"}})
    assert record.metrics() == ROWS
    found = record.checkpoint()
    assert found is not None
    assert (found["step"], found["weights"].tolist()) == (3, [0.0, 1.0, 2.0])
    assert list(yaml.safe_load((record.folder / "config.yaml").read_text())) == ["seed", "a"], "in the order given"
    assert (record.folder / "run.json").read_text().endswith("}\n")
    types = [pa.int64(), pa.float64(), pa.int64(), pa.float64(), pa.string(), pa.string(), pa.float64()]
    assert pq.read_schema(record.folder / "metrics.parquet") == pa.schema(list(zip(COLUMNS, types, strict=True)))
    assert said == []
    assert sorted(path.name for path in record.folder.iterdir()) == [
        "checkpoint.pt", "config.yaml", "metrics.parquet", "run.json",
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["ok", "diverged", "failed", "running"])
def test_only_a_finished_record_needs_its_metrics(status: str, record: Record) -> None:
    record.write_info(INFO | {"status": status})
    expected = "absent" if status in ("ok", "diverged") else status
    assert record.state() == State(expected, INFO | {"status": status})
    record.write_metrics([])
    assert record.state().status == status
    assert record.metrics() == []


def test_without_files_there_is_no_record(record: Record, said: list[str]) -> None:
    assert (record.state(), record.metrics(), record.checkpoint()) == (State("absent", {}), None, None)
    (record.folder / "file").write_text("")
    assert Record(record.folder / "file").state() == State("absent", {})
    assert said == []


def test_a_status_that_is_not_known_is_told_with_those_that_are(record: Record) -> None:
    record.write_info(INFO | {"status": "paused"})
    with pytest.raises(RecordError) as error:
        record.state()
    path = record.folder / "run.json"
    assert str(error.value) == f"{path} must have a status of ok, diverged, failed, running, got paused; left as it is"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "it must hold a mapping, got list"),
        (json.dumps({key: value for key, value in INFO.items() if key != "seed"}), "it has no seed"),
        (json.dumps(INFO | {"seed": True}), "seed must be a whole number, got True"),
    ],
)
def test_what_cannot_be_parsed_is_moved_aside_with_the_reason(
    content: str, why: str, record: Record, said: list[str]
) -> None:
    path = record.folder / "run.json"
    for number in (1, 2):
        path.write_text(content)
        assert record.state() == State("absent", {})
        line = f"{path} is damaged ({why}); moved to run.json.damaged-{number}, the run starts without it"
        assert said[number - 1 :] == [line]
        assert not path.exists()
    assert (record.folder / "run.json.damaged-1").read_text() == content


def test_what_cannot_be_read_is_left_where_it_is(record: Record, said: list[str]) -> None:
    for name, read in (("run.json", record.state), ("metrics.parquet", record.metrics)):
        (record.folder / name).mkdir()
        with pytest.raises(RecordError) as error:
            read()
        assert str(error.value) == f"cannot read {record.folder / name}: Is a directory; left as it is"
    assert said == []


def test_a_file_may_be_refused_under_a_word_of_its_own(record: Record, said: list[str]) -> None:
    record.write_checkpoint({})
    record.refuse("checkpoint.pt", "is of another run", "foreign")
    assert (record.folder / "checkpoint.pt.foreign-1").exists()
    moved = "moved to checkpoint.pt.foreign-1, the run starts without it"
    assert said == [f"{record.folder / 'checkpoint.pt'} is of another run; {moved}"]


def test_cleaning_takes_what_is_left_over_and_nothing_else(record: Record) -> None:
    left = ["checkpoint.pt", "error.txt", ".run.json.12-34.part", ".checkpoint.pt.1-2.part"]
    kept = ["run.json", "metrics.parquet", "config.yaml", "checkpoint.pt.damaged-1", "notes.part", ".lock"]
    for name in [*left, *kept]:
        (record.folder / name).write_text("")
    record.clean()
    assert sorted(path.name for path in record.folder.iterdir()) == sorted(kept)
    record.clean()
    record.write_error("Traceback: …")
    assert (record.folder / "error.txt").read_text(encoding="utf-8") == "Traceback: …"


@pytest.mark.parametrize("before", [None, "a: [", "- a list", "seed: 1\n"])
def test_tidying_mends_a_config_that_is_no_mapping(before: str | None, record: Record, said: list[str]) -> None:
    path = record.folder / "config.yaml"
    if before is not None:
        path.write_text(before)
    record.write_error("left over")
    record.tidy({"seed": 2})
    assert not (record.folder / "error.txt").exists()
    whole = before == "seed: 1\n"
    assert yaml.safe_load(path.read_text()) == ({"seed": 1} if whole else {"seed": 2})
    assert (said[-1:] == [f"{path} was written anew"]) is not whole


def test_a_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    record = Record(tmp_path / "a" / "b")
    with record.locked():
        with pytest.raises(RunLocked) as error, record.locked():
            pass
        assert str(error.value) == f"another process is executing the run {record.folder}"
        with pytest.raises(RunLocked), record.locked():
            pass
    with pytest.raises(ZeroDivisionError), record.locked():
        raise ZeroDivisionError
    with record.locked():
        pass


def test_a_results_folder_that_cannot_be_one_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = Record(tmp_path / "file" / "run")
    with pytest.raises(Unwritable) as error, record.locked():
        pass
    assert str(error.value) == f"paths.results must be a writable folder, got {record.folder}: Not a directory"


def parsed(**entries: Any) -> dict[str, Any]:
    return parse_info(
        json.dumps({key: value for key, value in (INFO | entries).items() if value != "left out"}).encode()
    )


@pytest.mark.parametrize("key", INFO)
def test_an_entry_that_every_record_has(key: str) -> None:
    with pytest.raises(OddEntry, match=f"^it has no {key}$"):
        parsed(**{key: "left out"})
    assert parsed(**{key: None})[key] is None


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_is_of_its_kind_or_nothing(key: str) -> None:
    examples = {
        str: ("a text", "x"),
        int: ("a whole number", 3),
        dict: ("a mapping", {"a": 1}),
        list: ("a list", ["x"]),
    }
    word, good = examples[ENTRIES[key]]  # type: ignore[index]
    assert parsed(**{key: good})[key] == good
    assert parsed(**{key: None})[key] is None
    for _, other in (*examples.values(), ("", True), ("", 0.5)):
        if type(other) is not type(good):
            with pytest.raises(OddEntry) as error:
                parsed(**{key: other})
            assert str(error.value) == f"{key} must be {word}, got {other!r}"
    with pytest.raises(OddEntry, match=r"'x{59}$" if word != "a text" else f"got {'1' * 60}$"):
        parsed(**{key: "x" * 99 if word != "a text" else int("1" * 99)})


@pytest.mark.parametrize("key", NUMBERS)
def test_a_mapping_of_numbers_holds_numbers(key: str) -> None:
    good = {"a": 1, "b": 0.5, "c": None, "d": float("inf")}
    assert parsed(**{key: good})[key] == good
    for other in ("x", [1], True, {"b": 1}):
        with pytest.raises(OddEntry, match=rf"^{key}.a must be a number, got "):
            parsed(**{key: {"a": other}})
