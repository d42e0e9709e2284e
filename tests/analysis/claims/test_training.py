"""Verdicts on synthetic records: a win, a loss, a tie, too few seeds, one diverged, a best of three that is luck."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipbench.analysis.claims import decide, training
from clipbench.analysis.claims.readings import by_seed, chosen_runs, final_value, is_idle, mean_share_clipped
from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.collect import collect
from tests.analysis.synthetic import write_run

TRIVIAL = {"trivial": {"accuracy": 0.01, "loss": 4.6}}
STEPS = (100, 200, 300, 400)


def put(
    root: Path, method: str, accuracies: list[float], status: str = "ok", first: int = 0, share: float = 0.5,
    role: str = "final", losses: list[float] | None = None, **more,
) -> None:  # fmt: skip
    """Runs of one method with these final test accuracies, which rise linearly over the evaluations."""
    for seed, accuracy in enumerate(accuracies, first):
        loss = losses[seed - first] if losses else 3.0
        final = {"test_accuracy": accuracy, "validation_loss": loss, "train_loss": loss}
        folder = write_run(
            root, method, seed, status=status, final=final if status == "ok" else {}, data=TRIVIAL, role=role, **more
        )
        rows = [(s, "test", "accuracy", accuracy * s / 400) for s in STEPS] + [
            (400, "train", "clipped_fraction", share)
        ]
        table = pd.DataFrame(rows, columns=["step", "split", "metric", "value"])
        table = table.assign(epoch=1.0, samples=table["step"] * 128, train_seconds=0.1 * table["step"])
        columns = ["step", "epoch", "samples", "train_seconds", "split", "metric", "value"]
        table[columns].to_parquet(folder / "metrics.parquet")


def calibrate(root: Path, **seconds: float) -> None:
    rows = [
        {"experiment": "toy/cpu", "method": m, "device": "Test CPU", "threads": 2, "step_seconds": s,
         "ratio": s, "ratio_low": s * 0.99, "ratio_high": s * 1.01, "n": 30, "precision": "fp32",
         "samples_per_step": 128, "fingerprint": "f" * 16, "tuned": True}
        for m, s in seconds.items()
    ]  # fmt: skip
    (root / "data").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(root / "data" / "calibration.parquet")


def source(root: Path) -> Source:
    collect(root, [])
    return Source(root)


def noisy(mean: float, n: int = 10, seed: int = 0, spread: float = 0.003) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).standard_normal(n)).tolist()


def judge(root: Path, **options):
    given = {"experiment": "toy/cpu", "method": "ps_clip", "against": ["sgd", "norm_clip"], "metric": "test_accuracy"}
    return decide(training.better_at_equal_seconds(source(root), **{**given, "margin": 0.01, **options}))


@pytest.mark.parametrize(
    ("mean", "n", "verdict"),
    [(0.30, 10, "reproduced"), (0.20, 10, "not reproduced"), (0.25, 10, "not reproduced"), (0.30, 4, "not decided")],
    ids=["win", "loss", "tie", "few seeds"],
)
def test_better_at_equal_seconds(tmp_path: Path, mean: float, n: int, verdict: str) -> None:
    put(tmp_path, "sgd", noisy(0.25, n, 1))
    put(tmp_path, "norm_clip", noisy(0.25, n, 2))
    put(tmp_path, "ps_clip", noisy(mean, n, 3))
    calibrate(tmp_path, sgd=1.0, norm_clip=1.0, ps_clip=1.0)
    assert judge(tmp_path).verdict == verdict


def test_a_slower_method_is_read_earlier(tmp_path: Path) -> None:
    for method in ("sgd", "norm_clip"):
        put(tmp_path, method, noisy(0.25, 10, len(method)))
    put(tmp_path, "ps_clip", noisy(0.30))
    calibrate(tmp_path, sgd=1.0, norm_clip=1.01, ps_clip=1.5)
    # 400 steps of sgd are 266 of ps_clip, whose last evaluation by then was at 200: half of 0.30.
    decision = judge(tmp_path)
    assert decision.verdict == "not reproduced"
    assert decision.statements[0].effect.estimate == pytest.approx(0.15 - 0.25, abs=0.005)
    beside = [s for s in decision.statements if not s.required]
    assert {s.state for s in beside} == {"shown"}


def test_without_calibration_nothing_is_decided(tmp_path: Path) -> None:
    put(tmp_path, "sgd", noisy(0.25))
    put(tmp_path, "norm_clip", noisy(0.25))
    put(tmp_path, "ps_clip", noisy(0.30))
    with pytest.raises(Missing, match="no calibrated step time of norm_clip, ps_clip, sgd"):
        judge(tmp_path)


def test_a_method_that_clips_nothing_is_its_baseline(tmp_path: Path) -> None:
    put(tmp_path, "sgd", noisy(0.25))
    put(tmp_path, "norm_clip", noisy(0.25))
    put(tmp_path, "ps_clip", noisy(0.30), share=0.004)
    calibrate(tmp_path, sgd=1.0, norm_clip=1.0, ps_clip=1.0)
    decision = judge(tmp_path)
    assert decision.verdict == "not reproduced"
    runs = source(tmp_path).experiment("toy/cpu")
    assert is_idle(mean_share_clipped(runs, chosen_runs(runs, "ps_clip")))
    assert not is_idle(mean_share_clipped(runs, chosen_runs(runs, "sgd")))


def test_diverged_and_dead_runs_count_as_the_trivial_predictor(tmp_path: Path) -> None:
    put(tmp_path, "ps_clip", noisy(0.30, 4))
    put(tmp_path, "ps_clip", [0.3], status="diverged", first=4)
    put(tmp_path, "ps_clip", [0.3], losses=[4.5], first=5)  # 4.5 ≥ 0.95 · 4.6
    put(tmp_path, "ps_clip", [0.3], status="failed", first=6)
    runs = source(tmp_path).experiment("toy/cpu")
    reading = by_seed(chosen_runs(runs, "ps_clip"), final_value("test_accuracy"), "test_accuracy")
    assert reading.values[4] == reading.values[5] == 0.01
    assert (reading.replaced, reading.unfinished, len(reading.values)) == (2, 1, 6)


def test_a_diverged_run_without_a_trivial_value_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "ps_clip", 0, status="diverged", role="final")
    runs = source(tmp_path).experiment("toy/cpu")
    with pytest.raises(ValueError, match="trivial must hold accuracy"):
        by_seed(chosen_runs(runs, "ps_clip"), final_value("test_accuracy"), "test_accuracy")


def test_the_best_of_three_is_chosen_on_tuning_trials_not_on_luck(tmp_path: Path) -> None:
    """The member with the lucky final seeds is not the one that tuning chose."""
    n = 20
    losses = {m: np.exp(noisy(-1.0, n, i, 0.1)).tolist() for i, m in enumerate(("sgd", "norm_clip", "a", "b"))}
    losses["b"] = np.exp(noisy(-1.5, n, 9, 0.1)).tolist()
    for method, values in losses.items():
        put(tmp_path, method, [0.2] * n, losses=values)
    put(tmp_path, "a", [0.2], losses=[0.30], role="tune", trial=0, first=100)
    put(tmp_path, "b", [0.2], losses=[0.35], role="tune", trial=0, first=100)
    given = {"experiment": "toy/cpu", "family": ["a", "b"], "against": ["norm_clip", "sgd"], "metric": "train_loss"}
    decision = decide(training.family_against(source(tmp_path), **given))
    assert "a − norm_clip" in decision.statements[0].text
    assert decision.verdict == "not decided"
    beside = [(one.text, one.state) for one in decision.statements if not one.required]
    assert ("train loss (log), b − norm_clip < 0", "shown") in beside, "what was not chosen stands there too"
    assert [text for text, _ in beside if "validation" in text] == [
        "validation loss (log), a − norm_clip < 0",
        "validation loss (log), a − sgd < 0",
    ]
    put(tmp_path, "b", [0.2], losses=[0.25], role="tune", trial=1, first=100)
    assert decide(training.family_against(source(tmp_path), **given)).verdict == "reproduced"


@pytest.mark.parametrize(("slower", "verdict"), [(1.02, "reproduced"), (1.2, "not reproduced")])
def test_clipping_before_accumulating_must_be_better_and_cheap(tmp_path: Path, slower: float, verdict: str) -> None:
    put(tmp_path, "norm_clip", noisy(0.25, 5, 1))
    put(tmp_path, "micro_batch_clip", noisy(0.28, 5, 2))
    calibrate(tmp_path, norm_clip=1.0, micro_batch_clip=slower)
    made = training.clip_before_accumulating(
        source(tmp_path), [{"experiment": "toy/cpu", "label": "4 × 128"}], "micro_batch_clip", "norm_clip",
        "test_accuracy", 0.01, 1.05,
    )  # fmt: skip
    assert decide(made).verdict == verdict


def test_no_worse_everywhere_and_somewhere_better(tmp_path: Path) -> None:
    put(tmp_path, "norm_clip", noisy(0.25, 5, 1))
    put(tmp_path, "spectral_clip", noisy(0.25, 5, 2))
    item = {
        "experiment": "toy/cpu", "family": ["spectral_clip"], "against": "norm_clip", "metric": "test_accuracy",
        "margin": 0.01, "higher": True, "label": "toy",
    }  # fmt: skip
    tie = decide(training.no_worse_and_somewhere_better(source(tmp_path), [item]))
    assert [s.state for s in tie.statements] == ["shown", "refuted"]
    assert tie.verdict == "not reproduced"
    for folder in (tmp_path / "runs").rglob("run.json"):
        info = json.loads(folder.read_text())
        if info["method"] == "spectral_clip":
            info["final"]["test_accuracy"] += 0.02
            info["attempt"] = 2
            folder.write_text(json.dumps(info))
    assert decide(training.no_worse_and_somewhere_better(source(tmp_path), [item])).verdict == "reproduced"
