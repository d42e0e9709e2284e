"""BatchNorm in training whose statistics are constants for the gradients, so that every sample has a gradient."""

from __future__ import annotations

import functools
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenStatistics:
    """What `freeze_batch_statistics` did to a model; `remove()`, or the end of a `with` block, undoes it."""

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self._layers = layers

    def remove(self) -> None:
        """Give the layers their own forward back. A second call does nothing."""
        for layer in self._layers:
            if is_frozen(layer):
                del layer.forward
        self._layers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def freeze_batch_statistics(model: nn.Module) -> FrozenStatistics:
    """Let every BatchNorm of `model` take the batch's mean and variance in training as constants for the gradients.

    Outputs, running statistics, evaluation and state_dict() are torch's own: a layer normalises by its batch's
    statistics and updates its running ones. Only gradients differ, and with them what is trained. Plain training has

        ∂L/∂x = (w/σ) (δ − mean(δ) − x̂ mean(δ x̂)),   frozen statistics have   ∂L/∂x = (w/σ) δ,

    δ being the gradient at the layer's output, w its weight, x̂ the normalised input, σ² the variance plus eps, and
    the means over the batch and space. What is left out is how one sample moves the others through the statistics. So
    the sum of the samples' gradients is NOT the gradient of plain training; a shift or a scaling of the layer's input,
    which cannot change its output, has a gradient all the same (a bias before the layer moves, where plain training
    leaves it). Weight and bias of the layer itself have their usual gradients for a given δ. Each loss still takes its
    VALUE from the whole batch: one sample that is not finite makes all of them so.

        with freeze_batch_statistics(model):
            stats = clipper.backward(criterion(model(x), y))

    Every forward in between is meant, a plain `loss.backward()` too. Layers are changed in place (their `forward`, not
    their class), copies of a frozen model are frozen. With several processes each takes its own part's statistics, as
    BatchNorm does. Raises ValueError for a BatchNorm with a forward of its own (SyncBatchNorm, fused ones).
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    fresh = [(name, layer) for name, layer in found if not is_frozen(layer)]
    for name, layer in fresh:
        if type(layer).forward is not _BatchNorm.forward or "forward" in vars(layer):
            raise ValueError(
                f"model must have BatchNorm layers with torch's own forward to freeze their statistics, got "
                f"{type(layer).__name__} '{name}'"
            )
    layers = [layer for _, layer in fresh]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    return FrozenStatistics(layers)


def is_frozen(layer: nn.Module) -> bool:
    """Whether a layer takes its batch's statistics as constants."""
    own = vars(layer).get("forward")
    return isinstance(own, functools.partial) and own.func is _forward


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm's forward, with statistics of the batch that no gradient passes."""
    if not layer.training and (layer.running_mean is not None or layer.running_var is not None):
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    values = x.numel() // max(x.shape[1], 1)
    if values < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    with torch.no_grad():
        promoted = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        var, mean = torch.var_mean(promoted, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        if layer.training and layer.track_running_stats:
            _remember(layer, mean, var * (values / (values - 1)))
    return F.batch_norm(x, mean, var, layer.weight, layer.bias, training=False, eps=layer.eps)


def _remember(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Update the running statistics; without a momentum they are means over all batches. Waits for no device."""
    share: float | Tensor = 0.0 if layer.momentum is None else layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            share = 1.0 / layer.num_batches_tracked.to(mean.dtype)
    for running, new in ((layer.running_mean, mean), (layer.running_var, var)):
        if running is not None:
            running.mul_(1 - share).add_((new * share).to(running.dtype))
