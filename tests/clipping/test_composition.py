"""Spectral clipping with every estimator and with the optimizers of the second paper, through the configuration."""

from __future__ import annotations

import math

import pytest
import torch

from clipbench.cli.compose import compose
from clipbench.config import schema
from clipbench.training.setup import build
from clipbench.training.trainer import Trainer

BASE = ["steps=4", "batch_size=16", "accumulation=2"]
ESTIMATORS = {
    "after accumulation": ["method=spectral_clip_ema"],
    "after per-sample clipping": ["method=ps_clip", "method.clipper._target_=clipbench.clipping.SpectralClip"],
    "inside each micro-batch": ["method=micro_batch_clip"],
}
SPECTRAL = {
    "after accumulation": [],
    "after per-sample clipping": ["+method.clipper.threshold=0.5"],
    "inside each micro-batch": [
        "method.estimator.clipper._target_=clipbench.clipping.SpectralClip",
        "method.estimator.clipper.threshold=0.5",
    ],
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_trains_with_every_estimator_and_optimizer(estimator: str, optimizer: str) -> None:
    config = compose([*BASE, *ESTIMATORS[estimator], *SPECTRAL[estimator], f"optimizer={optimizer}"])
    setup = build(config, schema.check(config))
    before = [parameter.detach().clone() for _, parameter in setup.parameters()]
    clipped = []
    for step in range(4):
        setup.optimizer.zero_grad()
        rows = torch.arange(32).reshape(2, 16) + 32 * step
        draws = torch.Generator().manual_seed(step)
        batches = [setup.data.batch(part, draws) for part in rows]
        losses = (setup.dataset.task.losses(setup.model(batch.inputs), batch) for batch in batches)
        estimate = setup.estimator(losses, 32)
        stats = setup.clipper(setup.parameters())
        inside = estimate.stats.get("micro_batch_clipped_fraction", torch.zeros(()))
        clipped.append(max(float(stats.clipped_fraction), float(inside)))
        setup.optimizer.step()
        assert math.isfinite(float(estimate.loss))
    assert max(clipped) > 0
    after = [parameter.detach() for _, parameter in setup.parameters()]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in after)
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_per_micro_batch_an_adaptive_threshold_sees_each_gradient() -> None:
    overrides = [
        "method=micro_batch_clip",
        "method.estimator.clipper._target_=clipbench.clipping.SpectralClip",
        "method.estimator.clipper.threshold={_target_:clipbench.clipping.EmaThreshold,coefficient:0.9}",
    ]
    config = compose([*BASE, *overrides])
    setup = build(config, schema.check(config))
    batch = setup.data.batch(torch.arange(16), torch.Generator().manual_seed(0))
    losses = (setup.dataset.task.losses(setup.model(batch.inputs), batch) for _ in range(2))
    setup.estimator(losses, 32)
    state = setup.estimator.state_dict()["clipper"]["threshold"]
    assert {int(row["count"]) for row in state.values()} == {2}


def test_logged_layers_have_their_largest_singular_value() -> None:
    """A constant threshold that bounds every norm needs no σ_max, and gradients are gone when layers are logged."""
    config = compose([*BASE, "method=spectral_clip", "method.clipper.threshold=1e6", "log_layers=true", "log_every=1"])
    trainer = Trainer(build(config, schema.check(config)))
    rows = [row for new in trainer.run() for row in new]
    values = [row["value"] for row in rows if row["metric"].endswith("/sigma_max")]
    assert len(values) == 4 * len([1 for _ in trainer.named])
    assert all(0 < value < 1e6 for value in values)
