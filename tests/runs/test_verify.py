"""What a reader checks first: a published number beside an own one; and edits that change no number."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from clipbench import report, verify
from clipbench.analysis import collect
from clipbench.cli.compose import compose
from clipbench.errors import ConfigError
from clipbench.runs import short_run
from clipbench.runs.execute import execute
from clipbench.runs.reach import PACKAGE
from clipbench.runs.request import request
from clipbench.runs.sweep import Sweep
from clipbench.runs.together import run_together
from clipbench.runs.verification import Comparison, Repeated, ShortRun

EXPERIMENT = "heavy_tailed_mlp/smoke"
SMOKE = [f"experiment={EXPERIMENT}", "device=cpu"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A results folder as a clone has it: collected runs of two methods, no records."""
    made = tmp_path / "made"
    for method in ("sgd", "ps_clip"):
        execute(compose([*SMOKE, f"method={method}", f"paths.results={made}"]), say=lambda line: None)
    collect(made)
    shutil.copytree(made / "data", tmp_path / "results" / "data")
    return tmp_path / "results"


def test_a_clone_finds_repeats_and_shows_what_is_published(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make run` does: everything is found, one run is trained again and agrees, and no published file changes."""
    before = {path: path.read_bytes() for path in clone.rglob("*.parquet")}
    words = [*SMOKE, "method=sgd,ps_clip", "seed=0", f"paths.results={clone}"]
    assert f"found: 2 of 2 in {clone}/data" in Sweep(words).to_do()
    assert verify.main([EXPERIMENT, "--results", str(clone), "--method", "ps_clip", "--seed", "0"]) == 0
    out = capsys.readouterr().out
    assert "ps_clip seed 0: ok" in out
    (line,) = [line for line in out.splitlines() if line.startswith("  test loss: published ")]
    assert line.endswith("(the same to the last bit)")
    assert "made by other code" not in out
    own = clone.parent / "own"
    assert report.main(["summary", EXPERIMENT, "--results", str(clone), "--into", str(own)]) == 0
    assert "ps_clip" in capsys.readouterr().out
    assert list(own.glob("figures/*.png"))
    assert {path: path.read_bytes() for path in clone.rglob("*.parquet")} == before
    assert sorted(path.name for path in clone.iterdir()) == ["data"]


def test_a_member_of_a_batch_is_repeated_alone_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMOKE, "method=sgd", "together=2", f"paths.results={tmp_path}"]
    assert len(run_together([request(compose([*words, f"seed={seed}"])) for seed in (0, 1)], lambda line: None)) == 2
    execute(compose([*words, "seed=2"]), say=lambda line: None)
    collect(tmp_path)
    line = "published as one of 2 runs that went together"
    for seed, said in ((1, True), (2, False)):
        assert verify.main([EXPERIMENT, "--results", str(tmp_path), "--seed", str(seed)]) == 0
        assert (line in capsys.readouterr().out) is said


def test_two_figures_that_are_no_number_are_the_same_and_a_missing_one_is_told() -> None:
    published = {"final": {"slope": math.nan, "error": 1.0, "share": 0.5, "train_seconds": 3.0, "gone": 2.0}}
    own = {"final": {"slope": math.nan, "error": 1.25, "share": 0.5, "train_seconds": 4.0}}
    assert Repeated(published, own).lines() == [
        "  slope: published nan, here nan (the same to the last bit)",
        "  error: published 1, here 1.25 (differs by 0.25)",
        "  share: published 0.5, here 0.5 (the same to the last bit)",
        "  gone: published 2, here there is none",
    ]


def test_what_was_not_published_cannot_be_repeated(clone: Path) -> None:
    with pytest.raises(ConfigError, match=r"must have published runs that ended ok \(method ps_clip, seed 5\)"):
        verify.main([EXPERIMENT, "--results", str(clone), "--method", "ps_clip", "--seed", "5"])
    with pytest.raises(ConfigError, match="EXPERIMENT must be given"):
        verify.main([])


def test_a_short_run_is_the_same_whole_and_resumed_and_tells_methods_apart() -> None:
    sgd, clip, unknown = short_run.short_runs(
        [[f"method={name}", "device=cpu"] for name in ("sgd", "ps_clip", "nothing")]
    )
    assert sgd[1] == clip[1] == "ok"
    assert sgd[2:] != clip[2:]
    assert isinstance(unknown, str)


def test_the_batched_program_has_a_fingerprint_and_a_digest_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.training.together.trainer import TogetherTrainer

    words = ["experiment=heavy_tailed_mlp/smoke", "device=cpu"]
    cases = [
        [*words, "method=sgd"],
        [*words, "method=sgd", short_run.BATCHED],
        ["device=cpu", "compile=true", short_run.BATCHED],
    ]
    lone, before, refused = short_run.short_runs(cases)
    assert before[0] != lone[0]
    assert before[1] == "ok ok"
    assert "these runs go alone" in refused
    step = TogetherTrainer.step
    monkeypatch.setattr(TogetherTrainer, "step", lambda self, number: step(self, number // 2))
    assert short_run.short_runs(cases[1:2])[0][3] != before[3]


def test_a_number_that_an_edit_changes_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.training.schedules import Constant

    (before,) = short_run.short_runs([["method=sgd", "device=cpu"]])
    monkeypatch.setattr(Constant, "factor", lambda self, step, steps: 1.0 + 1e-6)
    (after,) = short_run.short_runs([["method=sgd", "device=cpu"]])
    assert before[3] != after[3]


def test_codes_are_equal_where_rows_and_final_metrics_are() -> None:
    run = ShortRun("a", "ok", 18, "d", {"0 final test_loss": "0x1.0p+0", "0 final train_speed": "0x1.0p+1"})
    kept = run._replace(fingerprint="b", finals={"0 final test_loss": "0x1.0p+0"})
    assert Comparison("toy", "sgd", False, run, kept).equal, "what is no longer kept makes no number another"
    for other in (
        kept._replace(digest="e"), kept._replace(status="diverged"), kept._replace(rows=19),
        kept._replace(finals={"0 final test_loss": "0x1.1p+0"}), kept._replace(finals={"0 final new": "0x1.0p+0"}),
    ):  # fmt: skip
        assert not Comparison("toy", "sgd", False, run, other).equal
    assert not Comparison("toy", "sgd", False, None, kept).equal


def test_a_short_run_tells_its_final_metrics_to_the_last_bit() -> None:
    infos = [{"final": {"loss": 0.1, "train_seconds": 3.0}, "best": {"loss": math.nan}}, {"final": {}, "best": {}}]
    assert short_run.finals(infos) == {"0 final loss": (0.1).hex(), "0 best loss": "nan"}


@pytest.mark.slow
def test_equal_code_is_entered_and_other_code_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a checkout of its own: a renamed variable is entered, a changed number is refused."""
    tree = tmp_path / "tree"
    shutil.copytree(PACKAGE, tree / "clipbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "conf", tree / "conf")

    def git(*words: str) -> None:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", "-C", str(tree), *who, *words], check=True, capture_output=True)

    def verified() -> subprocess.CompletedProcess[str]:
        import os
        import sys

        command = [sys.executable, "-m", "clipbench.verify", "--equal", "HEAD", EXPERIMENT, "--method", "sgd"]
        return subprocess.run(
            command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
        )

    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    trainer = tree / "clipbench/training/trainer.py"
    text = trainer.read_text()
    trainer.write_text(text.replace("draws", "seeds"))
    done = verified()
    assert done.returncode == 0, done.stderr
    assert "1 pairs of fingerprints entered" in done.stdout
    entry = (tree / "conf/equal.yaml").read_text()
    assert "digest:" in entry
    changed = text.replace("rate * setup.schedule.factor(", "1.001 * rate * setup.schedule.factor(")
    assert changed != text
    trainer.write_text(changed)
    done = verified()
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout
    assert (tree / "conf/equal.yaml").read_text() == entry


def test_methods_that_a_sweep_does_not_name_are_taken_from_what_is_published() -> None:
    """The leaderboard runs every method; its experiment's own sweep names ten, and one rule of these goes alone."""
    results = Path(__file__).parents[2] / "results"
    found = verify._published_methods(results, "leaderboard_mlp/cpu")
    assert {"median", "mix_clip", "stable_spam", "sgd"} <= set(found)
    assert verify._went_together(results, "leaderboard_mlp/cpu", "median")
    assert not verify._went_together(results, "leaderboard_mlp/cpu", "mix_clip")
    assert verify._published_methods(results, "rates/cpu") == []
    assert verify._published_methods(results, "absent/cpu") == []
