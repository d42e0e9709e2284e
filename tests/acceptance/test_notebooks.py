"""The notebooks: executed on records made here, and stored with the outputs that results/ gives."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from clipbench.analysis import load, paired_difference, panels
from clipbench.analysis.tables import by_seed, final_metrics

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXPERIMENT = "heavy_tailed_mlp/smoke"
METHODS = ("sgd", "norm_clip", "ps_clip")
# One that trains is tried from one place: it takes its time.
TRAINS = FOLDER / "your_method.ipynb"
PLACES = [(path, place) for path in NOTEBOOKS if path != TRAINS for place in ("root", "notebooks", "elsewhere")]


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods of the smallest experiment with three seeds, not tuned."""
    root = tmp_path_factory.mktemp("single") / "results"
    command("clipbench.run", "-m", f"experiment={EXPERIMENT}", "seed=0,1,2", f"paths.results={root}", "device=cpu")
    command("clipbench.report", "all", "--results", str(root))
    return root


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same experiment, tuned with four trials a method."""
    root = tmp_path_factory.mktemp("tuned")
    options = ("trials=4", "final_seeds=0,1", "device=cpu")
    paths = (f"paths.results={root}/results", f"paths.tuned={root}/settings")
    command("clipbench.tune", f"experiment={EXPERIMENT}", *options, *paths)
    command("clipbench.report", "all", "--results", f"{root}/results")
    return root / "results"


def executed(name: str, cwd: Path, replace: dict[str, str] | None = None) -> NotebookNode:
    """The notebook with its outputs, executed in `cwd`; `replace` exchanges the start of a line for another line."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for start, line in (replace or {}).items():
        (cell,) = (c for c in book.cells if c.source.startswith(start))
        cell.source = "\n".join([line, *cell.source.splitlines()[1:]])
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(cwd)}}).execute()
    return book


def texts(book: NotebookNode, cell_id: str | None = None) -> str:
    """What the cells (or one of them) print and show as text."""
    outputs = [o for c in book.cells if cell_id in (None, c.id) for o in c.get("outputs", [])]
    return "\n".join(
        str(o.get("text") or o.data.get("text/markdown") or o.data.get("text/plain"))
        for o in outputs
        if o.output_type != "error"
    )


def pictures(book: NotebookNode) -> list[str]:
    """The ids of the cells that draw something."""
    return [c.id for c in book.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]


def snapshot(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_there_are_notebooks() -> None:
    assert {"compare", "ps_clip", "spectral_clip", "tuning", "your_method"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_as_executed(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "make notebooks"
    assert [cell.id for cell in book.cells for output in cell.get("outputs", []) if output.output_type == "error"] == []
    assert pictures(book)
    assert path.stat().st_size < 2_000_000
    for before, cell in zip([None, *book.cells], book.cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None, cell.id
            assert before.cell_type == "markdown", f"no sentence before {cell.id}"


@pytest.mark.slow
@pytest.mark.parametrize(("path", "place"), PLACES, ids=lambda each: getattr(each, "stem", each))
def test_runs_from_anywhere_and_only_reads(
    path: Path, place: str, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPBENCH_RESULTS", raising=False)
    (tuned.parent / "notebooks").mkdir(exist_ok=True)
    cwd = {"root": tuned.parent, "notebooks": tuned.parent / "notebooks", "elsewhere": tmp_path}[place]
    if place == "elsewhere":
        monkeypatch.setenv("CLIPBENCH_RESULTS", str(tuned))
    before = snapshot(tuned), snapshot(cwd)
    book = executed(path.stem, cwd)
    assert (snapshot(tuned), snapshot(cwd)) == before
    assert EXPERIMENT in texts(book)
    if path.stem in ("compare", "tuning"):
        assert pictures(book)
        for word in METHODS:
            assert word in texts(book)
    assert [o for c in book.cells for o in c.get("outputs", []) if o.get("name") == "stderr"] == []


@pytest.mark.slow
def test_an_outside_method_beside_published_ones(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its own five runs are trained, and nothing is left where it ran or in the results that it read."""
    monkeypatch.delenv("CLIPBENCH_RESULTS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (results.parent / "notebooks").mkdir(exist_ok=True)
    before = snapshot(results.parent)
    book = executed("your_method", results.parent / "notebooks")
    assert snapshot(results.parent) == before
    assert list(tmp_path.glob("*/my_package.py")) == []
    assert EXPERIMENT in texts(book)
    assert "nothing broken" in texts(book, "check")
    trained = texts(book, "run").splitlines()
    assert [line.split(",")[0] for line in trained if line] == [f"ok: root_clip seed {seed}" for seed in range(5)]
    counts = dict.fromkeys(METHODS, 3) | {"root_clip": 5}
    assert texts(book, "panel").split("\n")[:4] == [f"- {method}: {n} runs" for method, n in counts.items()]
    assert pictures(book) == ["curves"]
    (panel,) = panels(load(results, EXPERIMENT))
    finals = [float(line.rpartition("test loss ")[2].split(",")[0]) for line in trained if line]
    rows = {line.split()[2]: line.split()[3:] for line in texts(book, "differences").splitlines() if " − " in line}
    for variant in panel.variants:
        other = by_seed(variant, "test_loss")
        wanted = sum(finals[seed] - other[seed] for seed in other) / 3
        assert float(rows[variant.label][0]) == pytest.approx(wanted, abs=2e-3)
        assert rows[variant.label][3] == "3"
    assert "minutes from the class to the figure" in texts(book, "minutes")


def script() -> ModuleType:
    """scripts/notebooks.py."""
    spec = importlib.util.spec_from_file_location("notebooks", FOLDER.parent / "scripts" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_varies_is_not_compared() -> None:
    cell = nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["varies"]})
    book = nbformat.v4.new_notebook(cells=[cell])
    cell.outputs = [nbformat.v4.new_output("stream", text="1")]
    one = script().shown(book)
    cell.outputs = [nbformat.v4.new_output("stream", text="2")]
    assert script().shown(book) == one
    cell.outputs = []
    assert script().shown(book) != one
    cell.metadata = {}
    cell.outputs = [nbformat.v4.new_output("stream", text="1")]
    assert script().shown(book) == [(cell.id, "1")]


@pytest.mark.slow
def test_stored_outputs_are_those_of_results() -> None:
    check = subprocess.run(
        [sys.executable, str(FOLDER.parent / "scripts" / "notebooks.py"), "--check"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert check.returncode == 0, check.stderr


def test_an_output_that_another_result_gives_is_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check itself, on a book of two cells."""
    notebooks = script()
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("from pathlib import Path\nprint(Path('value').read_text())")]
    nbformat.write(book, tmp_path / "book.ipynb")
    (tmp_path / "value").write_text("1")
    assert notebooks.main(["--check"]) == 1
    assert notebooks.main([]) == 0
    stored = (tmp_path / "book.ipynb").read_bytes()
    assert notebooks.main(["--check"]) == 0
    (tmp_path / "value").write_text("2")
    assert notebooks.main(["--check"]) == 1
    (tmp_path / "value").write_text("1")
    assert notebooks.main([]) == 0
    assert (tmp_path / "book.ipynb").read_bytes() == stored


@pytest.mark.slow
def test_compare_shows_the_packages_numbers(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPBENCH_RESULTS", str(results))
    change = {"EXPERIMENT = ": f'EXPERIMENT = "{EXPERIMENT}"', "TARGET = ": "TARGET = 0.5"}
    book = executed("compare", FOLDER, change)
    assert pictures(book) == ["curves", "other-curves", "forest"]
    (panel,) = panels(load(results, EXPERIMENT))
    sgd, *others = (by_seed(v, final_metrics(panel)[0]) for v in panel.variants)
    lines = {line.split()[0]: line.split() for line in texts(book, "differences").splitlines() if line.strip()}
    for method, own in zip(METHODS[1:], others, strict=True):
        shown, expected = lines[method][1:], paired_difference(own, sgd)
        assert [float(x) for x in shown[:3]] == pytest.approx(expected[:3], abs=1e-5)
        assert int(shown[3]) == 3
    assert "validation loss 0.5: given" in texts(book, "target")
    assert texts(book, "reach").count("step)") == 3
    assert "raw" in texts(book, "seconds")


@pytest.mark.slow
def test_tuning_without_trials_says_what_to_run(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPBENCH_RESULTS", str(results))
    book = executed("tuning", FOLDER)
    assert f"python -m clipbench.tune experiment={EXPERIMENT}" in texts(book, "choice")
    assert pictures(book) == []


@pytest.mark.slow
def test_tuning_draws_the_sensitivity_and_the_budget(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPBENCH_RESULTS", str(tuned))
    book = executed("tuning", FOLDER)
    assert pictures(book) == ["figure", "budget"]
    assert float(texts(book, "start")) > 0


@pytest.mark.slow
def test_an_unknown_experiment_names_those_there_are(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPBENCH_RESULTS", str(results))
    with pytest.raises(CellExecutionError, match=rf"experiment must be one collected .*\({EXPERIMENT}\), got absent"):
        executed("compare", FOLDER, {"EXPERIMENT = ": 'EXPERIMENT = "absent"'})
