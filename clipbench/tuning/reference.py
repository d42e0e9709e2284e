"""The reference run: a few steps of plain training, on which is measured what a method compares with its threshold.

Thresholds differ by orders of magnitude from task to task and from rule to rule (the norm of a sample's gradient, of
the whole, the σ_max of a layer), and a range that is wide enough for all of them spends most trials where nothing or
everything is clipped. The range searched here is that of thresholds which clip 98 to 2 % of the values of the first
steps; the same rule for every method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipbench.clipping import Threshold
from clipbench.config import schema
from clipbench.errors import ConfigError

SHARES = (0.98, 0.02)  # clipped by the lowest and by the highest threshold
STEPS = (20, 200)  # of a reference run, at least and at most; else a twentieth of the run's
DIGITS = 3


class ThresholdRecorder(Threshold):
    """Stands where a clipper's threshold stands: clips nothing and keeps every value it is told."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        return torch.full((len(names),), math.inf, device=device)

    def update(self, names: Sequence[str], values: Tensor) -> None:
        self.values.append(values.detach().clone())


class SampleRecorder:
    """The same for the samples' norms ‖g_k‖, over k^{1/β} where the threshold is α k^{1/β}."""

    def __init__(self, beta: float = math.inf) -> None:
        self.beta = beta
        self.values: list[Tensor] = []

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        self.values.append(norms.detach() / k ** (1.0 / self.beta))
        return torch.full_like(norms, math.inf)


class MeasuredRanges(NamedTuple):
    """What the reference run of one method found.

    path → (low, high), the number of values by path, the run's steps and the settings it was made with.
    """

    ranges: dict[str, tuple[float, float]]
    values: dict[str, int]
    steps: int
    settings: dict[str, Any]


def ranges_of(config: Mapping[str, Any], paths: Sequence[str], settings: Mapping[str, Any]) -> MeasuredRanges:
    """The ranges of the thresholds at `paths` of `config`, which has `settings` in it already.

    Raises ConfigError where a path's clipper tells its threshold nothing, or all it tells is the same.
    """
    ranges, counts, steps = {}, {}, 0
    for path in paths:
        values, steps = _values(_recording(config, path), path)
        ranges[path], counts[path] = interval(values, path), len(values)
    return MeasuredRanges(ranges, counts, steps, dict(settings))


def interval(values: Tensor, path: str) -> tuple[float, float]:
    """Thresholds that clip 98 and 2 % of `values`, to three digits. Raises ConfigError where they are the same."""
    quantiles = torch.tensor([1 - share for share in SHARES], dtype=torch.float64)
    low, high = (float(f"{value:.{DIGITS}g}") for value in torch.quantile(_thinned(values), quantiles).tolist())
    if not 0 < low < high:
        raise ConfigError(f"{path} needs values that differ to be measured, got {low:g} to {high:g}")
    return low, high


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """Evenly spaced order statistics: torch.quantile takes 16 million values at most."""
    ordered = values.double().sort().values
    return ordered[:: max(1, len(ordered) // most)]


def _recording(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`config` with a recorder in the place of the threshold at `path`, and nothing else that clips."""
    steps = path.split(".")
    above, place = steps[: steps.index("threshold")], steps.index("threshold")
    method = _copied(config["method"])
    if above[1] != "clipper":
        method["clipper"] = {"_target_": "clipbench.clipping.NoClip"}
    node: Any = {"method": method}
    for key in above:
        node = node[key]
    samples = above == ["method", "estimator"]
    recorder: dict[str, Any] = {"_target_": f"{__name__}.{'SampleRecorder' if samples else 'ThresholdRecorder'}"}
    if samples and len(steps) > place + 1:
        recorder["beta"] = node["threshold"].get("beta", math.inf)
    node["threshold"] = recorder
    return {**config, "method": method}


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def _values(config: Mapping[str, Any], path: str) -> tuple[Tensor, int]:
    """The finite values above 0 that the recorder was told, and the steps that were made."""
    from clipbench.training.setup import build
    from clipbench.training.trainer import Trainer

    setup = build(config, schema.check(config))
    trainer, steps = Trainer(setup), min(setup.steps, max(STEPS[0], min(STEPS[1], setup.steps // 20)))
    setup.model.train()
    done = 0
    while done < steps and math.isfinite(float(trainer.step(done)["loss"])):
        done += 1
    told = [recorder.values for part in (setup.estimator, setup.clipper) for recorder in _recorders(part)]
    values = torch.cat([value.flatten().cpu() for values in told for value in values] or [torch.zeros(0)])
    values = values[values.isfinite() & (values > 0)]
    if not len(values):
        raise ConfigError(f"{path} cannot be measured: its rule tells its threshold no values; give a range")
    return values, done


def _recorders(part: object, depth: int = 3) -> Iterator[ThresholdRecorder | SampleRecorder]:
    """The recorders among an object's attributes and those of its parts."""
    if isinstance(part, ThresholdRecorder | SampleRecorder):
        yield part
    elif depth and hasattr(part, "__dict__") and not isinstance(part, torch.nn.Module | torch.Tensor):
        for value in vars(part).values():
            yield from _recorders(value, depth - 1)
