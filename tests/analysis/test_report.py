"""python -m clipbench.report, as its users see it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench import report
from clipbench.analysis.document import MOST_METHODS
from tests.analysis.synthetic import write_comparison, write_run, write_tuning


@pytest.fixture
def root(tmp_path):
    write_comparison(tmp_path, seeds=2)
    return tmp_path


def test_all_writes_data_tables_figures_and_report(root, capsys):
    write_tuning(root, trials=4)
    assert report.main(["all", "--results", str(root)]) == 0
    names = {
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and "runs" not in p.parts and p.suffix != ".lock"
    }
    stem = "toy__cpu"
    assert names == {
        f"data/{stem}.parquet", f"tables/{stem}.md", f"tables/{stem}__sensitivity.md", "REPORT.md",
        f"figures/{stem}.png", f"figures/{stem}.svg", f"figures/{stem}__sensitivity.png",
        f"figures/{stem}__sensitivity.svg", f"tables/{stem}__runs.md", "tables/verdicts.md", "tables/rules.md",
        "tables/effort.md", "report.html",
    }  # fmt: skip
    text = (root / "REPORT.md").read_text()
    for expected in ("## toy/cpu", "(figures/toy__cpu.png)", "learning-rate sensitivity", "18 runs", "Test CPU"):
        assert expected in text
    assert "/home" not in text
    assert "collected toy/cpu: 18 runs" in capsys.readouterr().out


def test_the_report_holds_the_benchmarks_tables(root):
    (root / "tables").mkdir()
    (root / "tables" / "bench_speed.md").write_text("| a table |\n")
    assert report.main(["all", "--results", str(root)]) == 0
    text = (root / "REPORT.md").read_text()
    assert text.index("## toy/cpu") < text.index("## Benchmarks") < text.index("| a table |")


def test_tables_and_figures_need_only_the_collected_data(root):
    assert report.main(["collect", "--results", str(root)]) == 0
    shutil.rmtree(root / "runs")
    assert report.main(["tables", "--results", str(root)]) == 0
    first = (root / "tables" / "toy__cpu.md").read_text()
    assert report.main(["all", "--results", str(root)]) == 0
    assert (root / "tables" / "toy__cpu.md").read_text() == first


def test_summary_prints_the_table_and_the_figures_path(root, capsys):
    assert report.main(["summary", "toy/cpu", "--results", str(root)]) == 0
    out = capsys.readouterr().out
    assert "ok / diverged / failed" in out
    assert "no verdict (n < 5)" in out
    path = root / "figures" / "toy__cpu.png"
    assert out.rstrip().endswith(f"figure: {path}")
    assert path.exists()


def test_summary_of_one_dataset_among_single_runs(tmp_path, capsys):
    for name in "ab":
        write_run(tmp_path, experiment="single", dataset=name, config={"dataset": {"name": name}})
    assert report.main(["summary", "single", "--dataset", "a", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mlp on a" in out
    assert "mlp on b" not in out


def test_a_note_of_several_tables_stands_below_the_first(tmp_path, capsys):
    for name in "abc":
        write_run(tmp_path, experiment="single", dataset=name, config={"dataset": {"name": name}})
    assert report.main(["summary", "single", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok / diverged / failed") == 3
    assert out.count("Step time: RAW medians") == 1
    assert out.index("Step time: RAW medians") < out.index("mlp on b")


def test_figures_of_chosen_curves(root):
    report.main(["collect", "--results", str(root)])
    arguments = ["figures", "toy/cpu", "--results", str(root), "--curves", "validation/loss"]
    assert report.main(arguments) == 0
    assert b"validation" in (root / "figures" / "toy__cpu.svg").read_bytes()


def test_warnings_go_to_stderr(root, capsys):
    write_run(root, seed=7, fingerprint="another")
    report.main(["collect", "--results", str(root)])
    expected = "warning: toy/cpu: runs of one method (sgd, sgd, toy, mlp) by 2 versions of the code"
    assert expected in capsys.readouterr().err


BAD = [
    (["collect", "nothing"], "experiment must be one with records"),
    (["summary", "nothing"], "experiment must be one with records"),
    (["collect", "--roots", "absent"], "roots must be folders"),
    (["tables", "nothing"], "experiment must be one collected"),
    (["summary", "toy/cpu", "--dataset", "other"], "experiment must have"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_status_two(root, capsys, arguments, message):
    assert report.main([*arguments, "--results", str(root)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_nothing_collected_is_bad_input(tmp_path, capsys):
    assert report.main(["tables", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: results must hold collected data")


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["tables", "--target", "x"], ["figures", "--curves", "loss"]])
def test_usage_errors_exit_with_two(arguments):
    with pytest.raises(SystemExit) as caught:
        report.main(arguments)
    assert caught.value.code == 2


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        report.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("collect", "tables", "figures", "summary", "all"))


def test_the_report_command_imports_no_torch():
    code = "import sys, clipbench.report, clipbench.analysis.plots; print([m for m in sys.modules if m == 'torch'"
    code += " or m.startswith('clipbench.') and not m.startswith("
    code += "('clipbench.analysis', 'clipbench.cli', 'clipbench.errors', 'clipbench.extras', 'clipbench.report', "
    code += "'clipbench.runs', 'clipbench.timing', 'clipbench.wording'))])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_folder_that_cannot_be_written_is_one_line_and_status_two(root, capsys, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert report.main(["summary", "toy/cpu", "--results", str(root), "--into", str(root / "own")]) == 2
    assert capsys.readouterr().err == f"error: {root / 'own' / 'data'}: Permission denied\n"


def test_a_reader_that_leaves_early_is_no_error():
    command = subprocess.Popen(
        [sys.executable, "-m", "clipbench.report", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()  # as `| head -0`
    assert command.stderr.read() == ""
    assert command.wait(60) == 0


def test_an_experiment_of_many_methods_has_tables_alone(tmp_path):
    """Forty lines in one figure tell nobody anything."""
    for number in range(MOST_METHODS + 1):
        write_run(tmp_path, "sgd" if number == 0 else f"rule_{number}", 0, "many/cpu")
    write_comparison(tmp_path, seeds=2)
    assert report.main(["all", "--results", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"toy__cpu"}
    assert (tmp_path / "tables" / "many__cpu.md").exists()
    assert "figures/many__cpu" not in (tmp_path / "REPORT.md").read_text()
