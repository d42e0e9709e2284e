"""The trace regression against its twin, step by step; its draws, its thresholds' first step, and a resume."""

from __future__ import annotations

import numpy as np
import pytest

from clipbench.studies.base import read_metric
from clipbench.studies.regression_problem import draw_problem
from clipbench.studies.trace_regression import TraceRegression, curve_steps
from tests.reference import trace_regression as reference

SETTING = {
    "seeds": 2, "thresholds": [0.05, 0.5, 5.0], "side": 3, "samples": 10, "noise": 0.01, "rate_factor": 0.5,
    "draws": 10, "coefficient": 0.9, "epsilon": 1e-8, "quantile": 0.85, "window": 100, "points": 40, "block": 100,
}  # fmt: skip


def study(**changes) -> TraceRegression:
    return TraceRegression(**{"seed": 11, "steps": 300, **SETTING, **changes})


def curves(rows) -> dict[tuple, float]:
    found = {}
    for row in rows:
        statistic, labels = read_metric(row["metric"])
        if labels:
            key = (labels["seed"], labels["clip"], labels["threshold"], statistic, row["step"])
            assert key not in found
            found[key] = row["value"]
    return found


def test_equals_the_twin_step_by_step():
    made = study(steps=130)
    for _ in made.run():
        pass
    found, largest, compared = curves(made.rows), 0.0, 0
    draws = [made.draw(0, 100), made.draw(100, 130)]
    for s, seed in enumerate(made.seeds):
        chosen = np.concatenate([part[0][s] for part in draws])
        counts = np.concatenate([part[1][s] for part in draws])
        fresh = np.array([np.repeat(np.arange(10), row) for row in counts])
        matrices, targets = made.problem.matrices[s].reshape(10, 3, 3), made.problem.targets[s]
        for label in made.rules.labels:
            rule = label["threshold"]
            twin = reference.run(matrices, targets, chosen, fresh, rule, label["clip"] == "norm")
            for step in made.curve:
                for column, name in enumerate(("error", "bias", "variance", "loss")):
                    scale = twin[:, 3].max() if name == "loss" else twin[:, :3].max()  # some parts are exactly zero
                    value = found[str(seed), label["clip"], str(rule), name, step]
                    largest = max(largest, abs(value - twin[step - 1, column]) / scale)
                    compared += 1
    assert compared == 2 * 11 * 4 * len(made.curve)
    assert largest < 1e-12


def test_every_sensing_matrix_has_its_own_orthogonal_basis():
    problem = draw_problem(3, 3, 10, 0.01, 0.5)
    bases = problem.bases[0].reshape(10, 3, 3, 3)
    assert np.abs(bases[0] - bases[1]).max() > 0.1
    gram = np.einsum("ijm,ikm->ijk", problem.bases[0], problem.bases[0])
    assert np.abs(gram - np.eye(3)).max() < 1e-14
    assert ((problem.eigenvalues >= 0.5) & (problem.eigenvalues <= 1.5)).all()
    matrices = problem.matrices[0].reshape(10, 3, 3)
    assert np.abs(matrices - matrices.swapaxes(1, 2)).max() < 1e-14
    assert problem.rate[0] == pytest.approx(0.25 / np.mean((matrices**2).sum((1, 2))))


def test_error_is_bias_plus_variance_over_draws():
    made = study(steps=4000, block=2000, seeds=4)
    for _ in made.run():
        pass
    found = curves(made.rows)
    for label in made.rules.labels:
        keys = [(str(s), label["clip"], str(label["threshold"])) for s in made.seeds]
        error, bias, variance = (
            np.mean([found[*k, name, 4000] for k in keys]) for name in ("error", "bias", "variance")
        )
        assert error == pytest.approx(bias + variance / 10, rel=0.1)


def test_first_step_rules():
    made = study()
    at_start = dict(zip([(x["clip"], x["threshold"]) for x in made.rules.labels], made.rules.tau[0], strict=True))
    assert at_start["spectral", "ema"] == at_start["norm", "ema"] == 0
    assert at_start["spectral", "quantile"] == at_start["none", "none"] == np.inf


def test_a_resumed_study_is_bit_for_bit_the_undisturbed_one():
    whole, first, second = study(), study(), study()
    for _ in whole.run():
        pass
    for _ in first.run():
        first.stopping = first.done == 2
    assert first.status == "running"
    second.load_state_dict(first.state_dict())
    for _ in second.run():
        pass
    assert second.status == "ok"
    assert curves(second.rows) == curves(whole.rows)


def test_curve_ends_at_the_last_step_without_repetition():
    assert curve_steps(7, 25).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert curve_steps(100_000, 25)[[0, -1]].tolist() == [1, 100_000]


@pytest.mark.parametrize(("option", "value"), [
    ("seeds", 0), ("side", 0), ("samples", 0), ("draws", 0), ("points", 0), ("block", 0), ("noise", -1.0),
    ("rate_factor", 0.0), ("coefficient", 1.0), ("epsilon", -1.0), ("quantile", 1.5), ("window", 0), ("steps", 0),
    ("thresholds", [0.1, 0.0]), ("thresholds", [0.1, 0.1]),
])  # fmt: skip
def test_bad_input_names_the_option(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be "):
        study(**{option: value})
