"""What an outside class must keep beside the promises of `examine`, to be compared with the others.

- finite: finite gradients, zero ones too, leave finite weights and figures;
- repeats: trained twice from the same seed it ends with the same bits;
- waits: its step never waits for the device (no value of a tensor is read: shown under torch's FakeTensorMode);
- cost: the time of a step over plain SGD's, interleaved; of a small network, so mostly overhead;
- composes: the estimators and optimizers with which it trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.clipping.base import Clipper
from clipbench.config.places import could_be, place
from clipbench.config.targets import target_of
from clipbench.contract.bench import PROBLEM, STEPS, Bench
from clipbench.contract.parts import BATCH, NAMES, NO_CLIP
from clipbench.contract.promises import Finding, examine, settings
from clipbench.errors import ConfigError

ROUNDS = 30
ESTIMATORS: dict[str, dict[str, Any]] = {
    "Batch": BATCH,
    "MicroBatch": {"_target_": "clipbench.estimators.MicroBatch", "clipper": NO_CLIP},
    "PerSample": {"_target_": "clipbench.estimators.PerSample", "threshold": 1.0},
}
OPTIMIZERS = ("sgd", "adam", "adamw", "muon", "matrix_sgd")


def method_of(name: str, options: Mapping[str, Any], part: str | None = None) -> dict[str, Any]:
    """The method config of one class: plain SGD but for it; a τ that must be given and is not is 1.

    `part` is clipper, estimator or update; by default what the class is. Raises ConfigError where it is neither.
    """
    target = target_of(name, part or "class")
    kinds = [each for each in ("clipper", "estimator") if could_be(target.made, place(f"method.{each}"))]
    if part is None and not kinds:
        raise ConfigError(f"class must be a Clipper, an Estimator, a Module or a Dataset, got {name}")
    node: dict[str, Any] = {"_target_": name, **options}
    for key, parameter in target.parameters.items():
        if parameter.default is parameter.empty and key in getattr(target.build, "taus", NAMES):
            node.setdefault(key, 1.0)
    return {"name": name.rpartition(".")[2], "estimator": BATCH, "clipper": NO_CLIP, part or kinds[0]: node}


def examine_outside(method: Mapping[str, Any], bench: Bench | None = None) -> list[Finding]:
    """Every promise of `examine` and those above, for a method's config; what the class raises is a finding too.

    >>> found = examine_outside(method_of("clipbench.clipping.NormClip", {"threshold": 1.0}))
    >>> [each.promise for each in found if each.held is False]
    []
    """
    given = bench or Bench()
    try:
        found = [*examine(method, given), finite(method, given), repeats(method, given)]
    except Exception as error:
        return [Finding("trains", False, _told(error))]
    return [*found, waits(method), cost(method, given), composes(method)]


def finite(method: Mapping[str, Any], bench: Bench) -> Finding:
    """Finite weights and figures at every setting, and finite gradients after zero ones."""
    for config in settings(method):
        left = bench.train(config)
        values = [*left.weights.values(), *(value for step in left.figures for value in step.values())]
        if not all(bool(torch.isfinite(value).all()) for value in values):
            return Finding("finite", False, "finite gradients left weights or figures that are not")
    clipper = bench.trainer(method).setup.clipper
    model = torch.nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _call(clipper, model)
    if not all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None):
        return Finding("finite", False, "zero gradients became not finite")
    return Finding("finite", True, "finite gradients, zero ones too, leave finite weights and figures")


def _call(clipper: Clipper, model: torch.nn.Module) -> None:
    clipper.reseed(0)
    clipper(list(model.named_parameters()))


def repeats(method: Mapping[str, Any], bench: Bench) -> Finding:
    """The same seed, the same bits."""
    same = bench.train(method).same(Bench(PROBLEM).train(method))
    why = "trained twice from one seed it ends with " + ("the same bits" if same else "different bits")
    return Finding("repeats", same, why)


def waits(method: Mapping[str, Any]) -> Finding:
    """Under FakeTensorMode no tensor has a value, and whatever reads one raises."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            trainer = Bench().trainer(method)
            for step in range(2):
                trainer.step(step)
    except Exception as error:
        return Finding("waits", False, f"its step reads a value, as .item(), if tensor or a mask do: {_told(error)}")
    return Finding("waits", True, "its step never waits for the device")


def cost(method: Mapping[str, Any], bench: Bench) -> Finding:
    """Interleaved with plain SGD in one process; a ratio, no verdict."""
    from clipbench.timing.interleaved import interleave, ratio

    trainers = {"sgd": bench.trainer(bench.config["method"]), "own": bench.trainer(method)}
    seconds = interleave({name: lambda t=t: t.step(0) for name, t in trainers.items()}, ROUNDS)  # type: ignore[misc]
    found = ratio(seconds["own"], seconds["sgd"])
    return Finding(
        "cost", None, f"a step takes {found.estimate:.2f} ({found.low:.2f} to {found.high:.2f}) times plain SGD's"
    )


def composes(method: Mapping[str, Any]) -> Finding:
    """Trains with each estimator (where it is none itself) and with each optimizer."""
    fine, broken = [], []
    own = method["estimator"] != BATCH
    cases = [(name, {**method, "estimator": node}, "sgd") for name, node in ESTIMATORS.items() if not own]
    cases += [(name, dict(method), name) for name in OPTIMIZERS]
    for name, config, optimizer in cases:
        try:
            words = (*(word for word in PROBLEM if not word.startswith("optimizer")), f"optimizer={optimizer}")
            trainer = Bench(words).trainer(config)
            losses = [float(trainer.step(step)["loss"]) for step in range(STEPS // 2)]
            if not all(math.isfinite(loss) for loss in losses):
                raise ValueError("the loss is not finite")
            fine.append(name)
        except Exception as error:
            broken.append(f"{name} ({_told(error)})")
    why = f"trains with {', '.join(fine)}" + (f"; not with {', '.join(broken)}" if broken else "")
    return Finding("composes", not broken, why)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').strip().splitlines()[0]}"
