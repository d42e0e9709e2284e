"""What an outside model must keep: shapes, finite outputs and gradients, one seed one model, samples apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.config.build import instantiate
from clipbench.contract.promises import Finding
from clipbench.data.base import Spec

SPECS = {
    "vector": Spec("vector", (20,), 3, "a vector of 20"),
    "image": Spec("image", (3, 32, 32), 10, "an image of 32 × 32"),
    "tokens": Spec("tokens", (16,), 65, "16 tokens"),
}
SAMPLES = 4


def examine_model(name: str, kind: str, options: Mapping[str, Any]) -> list[Finding]:
    """Findings for a class built for data of a kind (vector, image or tokens). ConfigError where it cannot be built.

    >>> [each.held for each in examine_model("clipbench.models.MLP", "vector", {"widths": [8]})]
    [True, True, True, True]
    """
    spec = SPECS[kind]

    def made() -> nn.Module:
        torch.manual_seed(0)
        built: nn.Module = instantiate({"_target_": name, **options}, "model", spec=spec)
        return built

    one, two = made(), made()
    inputs = _inputs(spec)
    outputs = one.eval()(inputs)
    return [_shape(outputs, spec), _repeats(one, two), _apart(one, inputs, outputs), _trains(two, inputs)]


def _inputs(spec: Spec) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    if spec.kind == "tokens":
        return torch.randint(spec.outputs, (SAMPLES, *spec.shape), generator=draw)
    return torch.randn(SAMPLES, *spec.shape, generator=draw)


def _shape(outputs: Tensor, spec: Spec) -> Finding:
    wanted = (SAMPLES, *spec.shape, spec.outputs) if spec.kind == "tokens" else (SAMPLES, spec.outputs)
    held = tuple(outputs.shape) == wanted and bool(torch.isfinite(outputs).all())
    return Finding("shape", held, f"outputs must be finite and of shape {wanted}, got {tuple(outputs.shape)}")


def _repeats(one: nn.Module, two: nn.Module) -> Finding:
    first, second = one.state_dict(), two.state_dict()
    same = first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    return Finding(
        "repeats", same, "built twice from one seed it has " + ("the" if same else "not the") + " same weights"
    )


def _apart(model: nn.Module, inputs: Tensor, outputs: Tensor) -> Finding:
    alone = torch.cat([model(inputs[k : k + 1]) for k in range(SAMPLES)])
    held = alone.shape == outputs.shape and torch.allclose(alone, outputs, rtol=1e-4, atol=1e-5)
    why = (
        "a sample's output does not depend on the other samples" if held else "a sample's output depends on the others"
    )
    return Finding("apart", held, f"{why} (in evaluation)")


def _trains(model: nn.Module, inputs: Tensor) -> Finding:
    model.train()
    model(inputs).square().mean().backward()
    missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    wild = [key for key, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if missing or wild:
        return Finding("trains", False, f"no finite gradient reaches {', '.join([*missing, *wild])}")
    return Finding("trains", True, "finite gradients reach every parameter")
