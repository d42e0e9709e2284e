"""Files of results/data that are damaged are named, whoever reads them, in one line with the status of bad input."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from clipbench.analysis.load import experiments, load, load_calibration
from clipbench.errors import RecordError
from clipbench.report import main
from clipbench.runs.archive import data_file, published, read_data
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
