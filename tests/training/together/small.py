"""Small batches of runs and the lone runs beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clipbench.cli.compose import CONFIG_PATH
from clipbench.runs.request import Request, request
from clipbench.training.setup import build
from clipbench.training.together.building import build_all
from clipbench.training.together.trainer import TogetherTrainer
from clipbench.training.trainer import Trainer
from tests.composed import composed

SMALL = [
    "device=cpu", "model.widths=[24,24]", "model.bias=true", "batch_size=8", "dataset.samples=400",
    "dataset.validation=50", "dataset.test=50", "dataset.features=24", "dataset.scale=0.3", "noise=rank_one",
    "noise.scale=0.3", "eval_every=50", "log_every=20", "steps=200",
]  # fmt: skip
MEMBERS = 3


def choices(group: str) -> list[str]:
    """The names of a config group's files."""
    return sorted(path.stem for path in (Path(CONFIG_PATH) / group).glob("*.yaml"))


def numbers(method: str, member: int) -> list[str]:
    """Overrides by which the member's method differs from the others': points of its own tuning ranges."""
    node = yaml.safe_load((Path(CONFIG_PATH) / "method" / f"{method}.yaml").read_text())
    found = []
    for path, reach in _ranges(node.get("tuning") or {}, "method"):
        share = (member + 1) / (MEMBERS + 1)
        low, high = float(reach["low"]), float(reach["high"])
        value = low * (high / low) ** share if reach.get("log") else low + share * (high - low)
        found.append(f"{path}={value}")
    return found


def _ranges(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and "low" in value:
            yield f"{path}.{key}", value
        elif isinstance(value, Mapping):
            yield from _ranges(value, f"{path}.{key}")


def family(method: str, *overrides: str, rate: float = 0.002) -> list[Request]:
    """MEMBERS runs of one method that differ in rate, seed (two share one) and the method's own numbers."""
    text = any("shakespeare" in word for word in overrides)
    left_out = ("dataset.", "model.") * text + ("noise.",) * ("noise=none" in overrides)
    base = [word for word in SMALL if not word.startswith(left_out)]
    return [
        asked(
            *base, f"method={method}", f"seed={member // 2}", f"optimizer.lr={rate * (member + 1)}",
            *numbers(method, member), *overrides,
        )
        for member in range(MEMBERS)
    ]  # fmt: skip


def asked(*overrides: str) -> Request:
    return request(composed(*overrides))


def alone(requests: Sequence[Request]) -> list[Trainer]:
    """The same runs one by one, trained to their ends."""
    trainers = [Trainer(build(one.config, one.options)) for one in requests]
    for trainer in trainers:
        for _ in trainer.run():
            pass
    return trainers


def together(requests: Sequence[Request]) -> TogetherTrainer:
    """The batch, trained to its end."""
    trainer = TogetherTrainer(build_all(requests), lambda line: None)
    for _ in trainer.run():
        pass
    return trainer


def lone_weights(trainers: Sequence[Trainer]) -> list[Tensor]:
    return [torch.cat([p.detach().flatten() for _, p in trainer.named]).double() for trainer in trainers]


def batch_weights(trainer: TogetherTrainer) -> list[Tensor]:
    stacked = torch.cat([weight.flatten(1) for weight in trainer.stacked.weights.values()], dim=1).double()
    return list(stacked.unbind())


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference over the largest weight, of all members."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@functools.cache
def text_folder() -> str:
    """A data root with a text of its own."""
    import tempfile

    root = Path(tempfile.mkdtemp())
    (root / "shakespeare").mkdir()
    words = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer\n"
    (root / "shakespeare" / "input.txt").write_text(words * 40)
    return str(root)
