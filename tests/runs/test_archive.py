"""Files of results/data that are damaged are named, whoever reads them, in one line with the status of bad input."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipbench
from clipbench.analysis.load import experiments, load, load_calibration
from clipbench.errors import RecordError
from clipbench.report import main
from clipbench.runs import archive
from clipbench.runs.archive import (
    METRIC_COLUMNS,
    Run,
    data_file,
    holds_runs,
    places,
    published,
    read_data,
    read_mapping,
    read_table,
    stem,
    write_data,
)
from tests.analysis.synthetic import write_calibration, write_comparison, write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_comparison(tmp_path)
    assert main(["collect", "--results", str(tmp_path)]) == 0
    write_calibration(tmp_path)
    return tmp_path


DAMAGE = {"cut": lambda content: content[: len(content) // 2], "other": lambda _: b"no table", "empty": lambda _: b""}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["calibration.parquet", "toy__cpu.parquet", "toy__cpu__tuning.json"])
def test_the_report_names_a_damaged_file(
    name: str, damage: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results / "data" / name
    path.write_bytes(DAMAGE[damage](path.read_bytes() if path.exists() else b"[1, 2"))
    capsys.readouterr()
    assert main(["tables", "--results", str(results), "toy/cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} cannot be read (")


def test_every_reader_names_it(results: Path) -> None:
    runs = load(results, "toy/cpu").runs
    calibration, data = results / "data" / "calibration.parquet", data_file(results, "toy/cpu")
    for path in (calibration, data):
        path.write_bytes(path.read_bytes()[:100])
    readers = [
        (calibration, lambda: load_calibration(results, "toy/cpu", runs)), (data, lambda: load(results, "toy/cpu")),
        (data, lambda: read_data(data)), (data, lambda: published(results, "toy/cpu", "0" * 16)),
    ]  # fmt: skip
    for path, read in readers:
        with pytest.raises(RecordError, match=f"^{path} cannot be read"):
            read()
    with pytest.raises(RecordError, match="cannot be read"):
        experiments(results)


def test_a_mapping_must_be_one(results: Path) -> None:
    (results / "data" / "toy__cpu__tuning.json").write_text("[]")
    with pytest.raises(RecordError, match=r"toy__cpu__tuning.json cannot be read \(ValueError\)"):
        load(results, "toy/cpu")
    assert isinstance(pd.read_parquet(data_file(results, "toy/cpu")), pd.DataFrame), "the runs themselves are whole"


def test_collecting_into_a_damaged_file_leaves_it(results: Path) -> None:
    path = data_file(results, "toy/cpu")
    path.write_bytes(b"damaged")
    write_run(results, "sgd", 77)
    assert main(["collect", "--results", str(results)]) == 2
    assert path.read_bytes() == b"damaged"


def some(run_id: str, rows: int = 2, **info: object) -> Run:
    """A run with a few rows, the last of which is NaN."""
    values = [[10 * i, 0.5 * i, 160 * i, 0.1 * i, "train", "loss", 1.0 / i] for i in range(1, rows + 1)]
    metrics = pd.DataFrame(values, columns=METRIC_COLUMNS)
    if rows:
        metrics.loc[rows - 1, "value"] = float("nan")
    return Run({"run_id": run_id, "experiment": "toy/cpu", "config": '{"seed": 1}'} | info, metrics)


def test_the_types_of_a_file_do_not_depend_on_its_runs(tmp_path: Path) -> None:
    """Steps and samples stay whole numbers beside a run without rows; a value that is NaN is not a missing one."""
    path = tmp_path / "data" / "toy__cpu.parquet"
    write_data(path, [some("a"), some("b", rows=0, error="lost", final='{"x": NaN}'), some("c", seed=3)])
    schema = pq.read_schema(path)
    kinds = [pa.int64(), pa.float64(), pa.int64(), pa.float64(), pa.string(), pa.string(), pa.float64()]
    assert [schema.field(name).type for name in METRIC_COLUMNS] == kinds
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    table = pq.read_table(path).to_pylist()
    assert [row["run_id"] for row in table] == ["a", "a", "b", "c", "c"], "in the order given"
    assert [row["step"] for row in table] == [10, 20, None, 10, 20]
    assert table[1]["value"] != table[1]["value"]
    assert (table[0]["seed"], table[2]["error"], table[4]["seed"]) == (None, "lost", 3)
    back = read_data(path)
    assert [(run.info["run_id"], len(run.metrics)) for run in back] == [("a", 2), ("b", 0), ("c", 2)]
    assert back[0].info["seed"] is None
    assert list(back[0].metrics.columns) == METRIC_COLUMNS
    assert back[2].metrics.index.tolist() == [0, 1]


def test_entries_of_several_kinds_become_texts(tmp_path: Path) -> None:
    write_data(tmp_path / "a.parquet", [some("a", note=1), some("b", note="two"), some("c"), some("d", note=2.5)])
    assert [run.info["note"] for run in read_data(tmp_path / "a.parquet")] == ["1", "two", None, "2.5"]


def test_a_file_with_these_bytes_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_data(path, [some("a")])
    before = path.stat()
    write_data(path, [some("a")])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_data(path, [some("b")])
    assert path.stat().st_ino != before.st_ino


def test_what_is_published_of_a_run(tmp_path: Path) -> None:
    write_data(data_file(tmp_path, "toy/cpu"), [some("b", final='{"loss": 0.5}', seed=1), some("a", seed=2)])
    found = published(tmp_path, "toy/cpu", "b")
    assert found == {
        "run_id": "b", "experiment": "toy/cpu", "config": {"seed": 1}, "final": {"loss": 0.5}, "seed": 1,
    }  # fmt: skip
    second = published(tmp_path, "toy/cpu", "a")
    assert second is not None
    assert (second["seed"], second["final"]) == (2, None)
    names = ("final", "best", "seconds", "device", "versions", "data", "config", "continued_by")
    write_data(data_file(tmp_path, "every"), [some("a", **dict.fromkeys(names, '{"x": [1]}'), other='{"x": [1]}')])
    every = published(tmp_path, "every", "a")
    assert every is not None
    assert [every[name] for name in names] == [{"x": [1]}] * len(names)
    assert every["other"] == '{"x": [1]}'
    assert published(tmp_path, "toy/cpu", "c") is None
    assert published(tmp_path, "other", "b") is None
    write_data(data_file(tmp_path, "toy/cpu"), [some("c")])
    assert published(tmp_path, "toy/cpu", "b") is None, "the file was replaced"
    pd.DataFrame({"method": ["sgd"]}).to_parquet(data_file(tmp_path, "table"))
    assert published(tmp_path, "table", "b") is None


def test_which_tables_hold_runs(tmp_path: Path) -> None:
    write_data(tmp_path / "runs.parquet", [some("a")])
    assert holds_runs(tmp_path / "runs.parquet")
    for missing in ("run_id", "experiment", "config", "metric"):
        pq.write_table(pq.read_table(tmp_path / "runs.parquet").drop_columns(missing), tmp_path / "less.parquet")
        assert not holds_runs(tmp_path / "less.parquet")
    for read in (holds_runs, read_table, read_data, read_mapping):
        with pytest.raises(RecordError) as error:
            read(tmp_path / "absent")
        said = f"{tmp_path / 'absent'} cannot be read (FileNotFoundError); make it again or restore it"
        assert str(error.value) == said


def test_a_mapping_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"é": [1]}', encoding="utf-8")
    assert read_mapping(tmp_path / "a.json") == {"é": [1]}


def test_where_collected_runs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(clipbench.__file__).parent / "published" == archive.SHIPPED
    monkeypatch.setattr(archive, "SHIPPED", tmp_path / "published")
    assert places(tmp_path) == [tmp_path]
    (tmp_path / "published" / "data").mkdir(parents=True)
    assert places(tmp_path) == [tmp_path, tmp_path / "published"]
    assert data_file(tmp_path, "a/b") == tmp_path / "data" / "a__b.parquet"
    assert [stem(name) for name in ("a/b", "a__b", "a%b", "a_b")] == ["a__b", "a%5F%5Fb", "a%25b", "a_b"]
