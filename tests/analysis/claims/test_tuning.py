"""Expected best score after few trials: against brute force, and the verdict on synthetic trials."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from clipbench.analysis.claims import decide
from clipbench.analysis.claims.source import Source
from clipbench.analysis.claims.training import Arm
from clipbench.analysis.claims.tuning import expected_best_score, fewer_trials, scored_trials
from clipbench.analysis.collect import collect
from tests.analysis.synthetic import write_run

TRIVIAL = {"trivial": {"loss": 1.0}}


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_expected_best_score_is_the_mean_over_all_draws(budget: int) -> None:
    trials = np.random.default_rng(0).uniform(size=(5, 2))
    scores = [trials[min(draw, key=lambda i: trials[i, 0]), 1] for draw in itertools.product(range(5), repeat=budget)]
    assert expected_best_score(trials, budget) == pytest.approx(np.mean(scores), rel=1e-12)


def put(root: Path, method: str, losses: np.ndarray) -> None:
    for trial, pair in enumerate(losses):
        for seed, loss in zip((100, 101), pair, strict=True):
            status = "ok" if np.isfinite(loss) else "diverged"
            final = {"validation_loss": float(loss)} if status == "ok" else {}
            write_run(
                root, method, seed, role="tune", trial=trial, status=status, final=final, data=TRIVIAL, lr=trial + 1
            )


def judge(root: Path):
    collect(root, [])
    return fewer_trials(Source(root), "toy/cpu", ["ema", "quantile"], ["constant", "norm"], [2, 4], "validation_loss")


def draws(share_good: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = np.where(rng.uniform(size=(32, 1)) < share_good, 0.1, 2.0)  # 2.0 is beyond the trivial predictor's 1.0
    return base * np.exp(0.05 * rng.standard_normal((32, 2)))


def test_a_rule_that_needs_less_tuning_is_found(tmp_path: Path) -> None:
    for i, (method, share) in enumerate({"ema": 0.9, "quantile": 0.2, "constant": 0.2, "norm": 0.2}.items()):
        put(tmp_path, method, draws(share, i))
    decision = decide(judge(tmp_path))
    assert decision.verdict == "reproduced"
    assert decision.statements[0].state == "shown"


def test_equal_rules_show_nothing(tmp_path: Path) -> None:
    for i, method in enumerate(("ema", "quantile", "constant", "norm")):
        put(tmp_path, method, draws(0.4, i))
    assert decide(judge(tmp_path)).verdict != "reproduced"


def test_losses_are_capped_at_the_trivial_predictors(tmp_path: Path) -> None:
    put(tmp_path, "ema", np.array([[0.5, 0.6], [3.0, np.inf]]))
    collect(tmp_path, [])
    table = scored_trials(Source(tmp_path).experiment("toy/cpu"), Arm.of("ema"), "validation_loss")
    assert table.tolist() == [[0.5, 0.6], [1.0, 1.0]]
