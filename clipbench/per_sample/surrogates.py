"""How owners (see `dependence`) pass through operations that move entries by data, or that cannot run on made-up data.

Each surrogate is a linear function with the operation's arguments and the shape of its result, whose result depends
on every input that the operation could make it depend on, for any indices, targets and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

NOBODY, SHARED = 0.0, -1.0
"""Owners that are no sample."""


FACTORIES = frozenset({"zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "empty_strided",
                       "new_empty_strided", "_efficientzerotensor", "zero_", "zero"})  # fmt: skip
"""Operations whose result is nobody's, until gradients are written into it."""
SCALES = frozenset({"mul_", "div_", "neg_", "zero_", "detach_"})
"""Operations that leave zeros what they are."""
SHAPE_ONLY = frozenset({"ones_like", "full_like", "new_ones", "new_full", "rand_like", "randn_like"})
"""Operations on a gradient whose result does not depend on its values."""
READS_VALUES = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "item", "nonzero"})
"""Operations that let a program decide by a value: not by a gradient's, nor by what was made of one."""
PARTS = frozenset({"view_as_real", "view_as_complex", "_conj", "_neg_view"})
"""Views between complex numbers and their parts, and of conjugates."""
MOVES = frozenset({"clone", "_unsafe_view", "_reshape_copy", "cat", "stack", "flip", "roll", "select_backward",
                   "slice_backward", "constant_pad_nd", "tril", "triu", "diagonal_backward", "_to_copy", "copy",
                   "select_scatter", "slice_scatter", "lift_fresh", "rot90", "repeat"})  # fmt: skip
"""Operations that copy entries from constant places to constant places: applied to owners as they are."""
ELEMENTWISE = frozenset({
    "add", "sub", "rsub", "mul", "div", "neg", "where", "masked_fill", "index_fill", "native_dropout_backward",
    "threshold_backward", "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward", "gelu_backward",
    "silu_backward", "elu_backward", "leaky_relu_backward", "mish_backward", "softplus_backward", "sigmoid_backward",
    "tanh_backward", "log_sigmoid_backward", "softshrink_backward", "hardshrink_backward", "logit_backward",
    "_prelu_kernel_backward", "rrelu_with_noise_backward", "mse_loss_backward", "smooth_l1_loss_backward",
    "huber_loss_backward", "binary_cross_entropy_backward", "soft_margin_loss_backward", "copy", "conj", "real",
    "fmod", "abs", "sgn", "ldexp", "sign", "sqrt", "square", "tanh", "nan_to_num", "log", "exp",
})  # fmt: skip
"""Operations of which an output entry depends on the gradient entries at its own place, whatever the other operands.

Scalar factors count as operands: a factor that is zero today leaves no hole.
"""
CLAMPS = frozenset({"clamp", "clamp_min", "clamp_max"})
"""Further ones, where zero lies between the bounds."""

_TRUST: ContextVar[bool] = ContextVar("trust", default=True)


def blur(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Every entry gets the sum over `dims`: it may have come from anywhere along them."""
    return tensor.sum(list(dims), keepdim=True).expand_as(tensor) if len(dims) else tensor


@contextmanager
def trusting_indices(trust: bool) -> Iterator[None]:
    """Whether, inside, an index that counts up today is taken to do so always; not one that a program may compute."""
    token = _TRUST.set(trust)
    try:
        yield
    finally:
        _TRUST.reset(token)


def counts_up(index: Tensor | None) -> bool:
    """Whether an index is 0, 1, 2, … along one axis, as in `x[torch.arange(n), last]`: known where asking is free."""
    if index is None or not _TRUST.get() or index.dtype is not torch.int64:
        return False
    if index.device.type != "cpu" or hasattr(index, "fake_mode"):
        return False
    with _disable_current_modes():
        return index.numel() == max(index.shape, default=0) and bool((index.reshape(-1) == _numbers(index)).all())


def _numbers(index: Tensor) -> Tensor:
    return torch.arange(index.numel(), device="cpu")


def _masks(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _blurred(indices: Sequence[Tensor | None]) -> list[int]:
    """Dimensions along which advanced indices move entries by data."""
    dims: list[int] = []
    at = 0
    for index in indices:
        width = index.dim() if index is not None and _masks(index) else 1
        if index is not None and not counts_up(index):
            dims += range(at, at + width)
        at += width
    return dims


def _standing_still(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices that move by data point to the first entry: where does not matter beside a blur.

    Masks stay, as the result's shape comes from them.
    """
    return [x if x is None or _masks(x) or counts_up(x) else _zero_index(x) for x in indices]


def _zero_index(tensor: Tensor) -> Tensor:
    device = "cpu" if hasattr(tensor, "fake_mode") else tensor.device
    return torch.zeros(tuple(tensor.shape), dtype=torch.int64, device=device)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return torch.ops.aten.index(blur(x, _blurred(indices)), _standing_still(indices))


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *_: Any, **__: Any) -> Tensor:
    put = torch.ops.aten.index_put(torch.zeros_like(x), _standing_still(indices), values, True)
    return x + blur(put, _blurred(indices))


def _gather(x: Tensor, dim: int, index: Tensor, **_: Any) -> Tensor:
    return torch.gather(blur(x, [dim]), dim, _zero_index(index)) if x.dim() else x


def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.index_select(blur(x, [dim]), dim, _zero_index(index)) if x.dim() else x


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Any, *_: Any, **__: Any) -> Tensor:
    if not isinstance(source, Tensor):
        return x
    written = torch.zeros_like(x).scatter_add(dim, _zero_index(index), source)
    return x + (blur(written, [dim]) if x.dim() else written)


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *_: Any, **__: Any) -> Tensor:
    written = torch.zeros_like(x).index_add(dim, _zero_index(index), source)
    return x + (blur(written, [dim]) if x.dim() else written)


def _embedding_dense(grad: Tensor, indices: Tensor, rows: int, *_: Any) -> Tensor:
    summed = grad.sum(list(range(indices.dim())), keepdim=False)
    return summed.expand(rows, *summed.shape)


def _nll_loss(grad: Tensor, x: Tensor, target: Tensor, weight: Any, reduction: int, *_: Any) -> Tensor:
    """Every class may be the target; a mean or a sum spreads one gradient over all."""
    if reduction or x.dim() == 1:
        return grad.expand_as(x)
    return grad.unsqueeze(1).expand_as(x)


def _pool(spatial: int) -> Callable[..., Tensor]:
    """A maximum may sit anywhere in its plane."""

    def surrogate(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return grad.sum(list(range(-spatial, 0)), keepdim=True).expand_as(x)

    return surrogate


def _attention(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    """(sample, head, position, width): a query's gradient is its own row's, keys and values hear all of the head."""
    own = grad.sum(-1, keepdim=True).expand_as(query)
    several = key.shape[-3] != grad.shape[-3]  # heads of queries for one of keys
    every = grad.sum([-3, -2, -1] if several else [-2, -1], keepdim=True)
    return own, every.expand_as(key), every.expand_as(value)


def _attention_with_bias(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *rest: Any, **options: Any
) -> tuple[Tensor, ...]:
    parts = _attention(grad, query, key, value)
    if bias is None:
        return parts
    return (*parts, grad.sum().expand_as(bias))


def _lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    """(time, batch, width): every member of the batch by itself, all of its steps and states together."""
    x, weights, state = args[0], args[1:5], args[5]
    batch = x.shape[1]
    parts = [grad.sum((0, 2)) if grad.dim() == 3 else grad.reshape(batch, -1).sum(1)
             for grad in args[10:13] if grad is not None]  # fmt: skip
    each = torch.as_tensor(sum(parts), device=parts[0].device)
    column = each.reshape(1, batch, 1)
    states = column.reshape(*[1] * (state.dim() - 2), batch, 1).expand_as(state)
    return (column.expand_as(x), *[each.sum().expand_as(weight) for weight in weights], states, states)


def _distances(grad: Tensor, first: Tensor, *_: Any) -> Tensor:
    """Of rows of `first` to others: with the largest difference as distance, any entry may count."""
    return grad.sum(-1, keepdim=True).expand_as(first)


def _pairs(grad: Tensor, points: Tensor, *_: Any) -> Tensor:
    """Distances of all pairs of points (rows, width), in their order: each belongs to two rows, see `_distances`."""
    rows = points.shape[0]
    first, second = torch.triu_indices(rows, rows, 1, device=grad.device)
    each = grad.new_zeros(rows).index_add(0, first, grad).index_add(0, second, grad)
    return each[:, None].expand_as(points)


def _samplers(spatial: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """An image (n, channels, *space) looked up at the places of a grid (n, *out, spatial)."""

    def surrogate(grad: Tensor, x: Tensor, grid: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        plane = grad.sum(list(range(-spatial, 0)), keepdim=True)
        return plane.expand_as(x), grad.sum(1)[..., None].expand_as(grid)

    return surrogate


def _batch_norm(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, channel, *space): with the batch's own statistics, every channel is one."""
    others = [0, *range(2, grad.dim())]
    channel = grad.sum(others)
    each = grad if rest[5] is False else blur(grad, others)
    return each.expand_as(x), channel, channel


BY_INDEX = frozenset({"index", "_unsafe_index", "index_put", "_index_put_impl", "_unsafe_index_put", "gather",
                      "index_select", "scatter_add", "scatter", "index_add", "index_copy",
                      "embedding_dense_backward"})  # fmt: skip
"""Operations that need a surrogate only where their indices may be others another time."""
SURROGATES: dict[str, Callable[..., Any]] = {
    "index": _index,
    "_unsafe_index": _index,
    "index_put": _index_put,
    "_index_put_impl": _index_put,
    "_unsafe_index_put": _index_put,
    "gather": _gather,
    "index_select": _index_select,
    "scatter_add": _scatter_add,
    "scatter": _scatter_add,
    "index_add": _index_add,
    "index_copy": _index_add,
    "embedding_dense_backward": _embedding_dense,
    "nll_loss_backward": _nll_loss,
    "nll_loss2d_backward": _nll_loss,
    "max_pool2d_with_indices_backward": _pool(2),
    "max_pool3d_with_indices_backward": _pool(3),
    "adaptive_max_pool2d_backward": _pool(2),
    "adaptive_max_pool3d_backward": _pool(3),
    "grid_sampler_2d_backward": _samplers(2),
    "grid_sampler_3d_backward": _samplers(3),
    "logcumsumexp": lambda x, dim: x.cumsum(dim),
    "_cdist_backward": _distances,
    "_pdist_backward": _pairs,
    "native_batch_norm_backward": _batch_norm,
    "cudnn_batch_norm_backward": lambda x, grad, *_: _batch_norm(grad, x, *[True] * 6),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention,
    "_scaled_dot_product_flash_attention_backward": _attention,
    "_scaled_dot_product_efficient_attention_backward": _attention_with_bias,
    "_scaled_dot_product_cudnn_attention_backward": _attention,
    "mkldnn_rnn_layer_backward": _lstm_layer,
}
