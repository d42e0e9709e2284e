"""What a tuning may select by: the metrics that its runs will have, known before any of them is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.runs.fit import build
from clipbench.training.evaluation import at_least_single

ALWAYS = ("validation_loss", "train_loss")


def check_metric(config: Mapping[str, Any], options: schema.Options) -> None:
    """ConfigError where `tuning.metric` is none that a training with this config has; it evaluates one sample."""
    metric = options.tuning.metric
    if metric in ALWAYS or schema.is_study(config):
        return
    made = build(config, options)
    batch = next(iter(made.data.evaluation("validation", 1)))
    made.model.eval()
    with torch.no_grad():
        found = made.dataset.task.metrics(at_least_single(made.model(batch.inputs)), batch)
    known = [*(f"validation_{name}" for name in found), "train_loss"]
    if metric not in known:
        raise ConfigError(f"tuning.metric must be one of {', '.join(sorted(known))}, got {metric}")
