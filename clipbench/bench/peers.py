"""The engines that are compared: each leaves (1/n) Σ_k min(1, τ/‖g_k‖) g_k in `.grad`, used as its documentation says.

`sgd` is plain SGD, which clips nothing. Opacus is used without its privacy engine: no noise, no sampling, no
accounting. Its factor is τ/(‖g_k‖ + 10⁻⁶), cut off at 1.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clipbench.bench.problems import Problem
from clipbench.per_sample import PerSampleClipper

Call = Callable[[], object]


class Engine(Protocol):
    """Makes a call that adds the clipped mean gradient of `problem` to its model's `.grad`, None before each call.

    chunk: samples whose gradients exist at a time, 0 for all; only vmap can do with fewer.
    """

    def __call__(self, problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call: ...


def sgd(problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call:
    """Plain SGD: the backward pass of the mean loss."""
    model, inputs, targets, losses = problem
    return lambda: losses(model(inputs), targets).mean().backward()


def clipbench(problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call:
    """`clipbench.per_sample`."""
    model, inputs, targets, losses = problem
    clipper = PerSampleClipper(model, threshold)
    return lambda: clipper.backward(losses(model(inputs), targets))


def torch_vmap(problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call:
    """torch.func: vmap(grad(…)) over the samples, as in PyTorch's tutorial on per-sample gradients."""
    model, inputs, targets, losses = problem
    named = dict(model.named_parameters())
    values = {name: parameter.detach() for name, parameter in named.items()}

    def loss(parameters: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return losses(functional_call(model, parameters, (sample[None],)), target[None])[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    n = len(inputs)
    size = chunk or n

    def call() -> None:
        for start in range(0, n, size):
            found = gradients(values, inputs[start : start + size], targets[start : start + size])
            add_clipped(list(named.values()), [found[name] for name in named], threshold, n)

    return call


def opacus_hooks(problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call:
    """Opacus' GradSampleModule (grad_sample_mode "hooks"), its `.grad_sample`s clipped and summed."""
    from opacus.grad_sample import GradSampleModule

    model, inputs, targets, losses = problem
    wrapped = GradSampleModule(model, loss_reduction="mean")
    parameters: list[Any] = list(model.parameters())  # Opacus adds `.grad_sample`

    def call() -> None:
        losses(wrapped(inputs), targets).mean().backward()
        optimizer.zero_grad()  # the hooks leave the plain mean gradient too
        add_clipped(parameters, [p.grad_sample for p in parameters], threshold, len(inputs))
        for parameter in parameters:
            parameter.grad_sample = None

    return call


def opacus_ghost(problem: Problem, optimizer: torch.optim.Optimizer, threshold: float, chunk: int) -> Call:
    """Opacus' ghost clipping: one backward for the norms, a second for the weighted losses."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    model, inputs, targets, losses = problem
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=threshold, use_ghost_clipping=True, loss_reduction="mean"
    )
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # its rule for embeddings cannot read expanded indices
            module.register_forward_pre_hook(lambda module, indices: (indices[0].contiguous(),))

    def call() -> None:
        DPTensorFastGradientClipping(wrapped, optimizer, losses(wrapped(inputs), targets), "mean").backward()
        sums = [p.grad for p in model.parameters() if p.grad is not None]  # not yet means
        torch._foreach_div_(sums, len(inputs))

    return call


def add_clipped(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], threshold: float, total: int) -> None:
    """Add (1/total) Σ_k γ_k g_k to `.grad`, from per-sample gradients of shapes (n, *parameter.shape)."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    gamma = (threshold / norms).clamp(max=1.0) / total
    for parameter, gradient in zip(parameters, gradients, strict=True):
        clipped = torch.einsum("i,i...->...", gamma, gradient)
        parameter.grad = clipped if parameter.grad is None else parameter.grad.add_(clipped)


ENGINES: dict[str, Engine] = {
    "sgd": sgd,
    "clipbench": clipbench,
    "vmap": torch_vmap,
    "opacus_hooks": opacus_hooks,
    "opacus_ghost": opacus_ghost,
}
LABELS = {
    "sgd": "plain SGD",
    "clipbench": "clipbench",
    "vmap": "torch.func vmap",
    "opacus_hooks": "Opacus hooks",
    "opacus_ghost": "Opacus ghost clipping",
}


def optimizer_step(engine: str, problem: Problem, threshold: float, chunk: int = 0) -> Call:
    """The whole step: forward, backward, clipping, and torch's SGD with momentum 0.9.

    Raises ImportError where the engine's library is not installed.
    """
    quiet()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-4, momentum=0.9)
    gradient = ENGINES[engine](problem, optimizer, threshold, chunk)

    def step() -> None:
        gradient()
        optimizer.step()
        optimizer.zero_grad()

    return step


def quiet() -> None:
    """Silence what the peers warn of at every use (hooks on inputs without gradient, missing batching rules)."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("opacus").setLevel(logging.ERROR)
