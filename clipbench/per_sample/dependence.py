"""Which sample owns every entry of a gradient: a proof from the graph's operations alone, valid for any data.

One backward pass runs under a dispatch mode that sees every tensor operation. Beside each gradient it carries that
gradient's OWNERS: 0 (nobody: zero whatever the data), k + 1 (only the loss of sample k reaches this entry), or −1
(several may). Backward operations are linear in the gradients, so owners pass through the very same operation: it is
applied to positive random numbers in place of gradients, multiplied by powers of two that spell the owners' digits,
and with positive random numbers in place of every saved value. An output that belongs to one sample comes out as a
power of two times the plain one, exactly; a mixture does not. As values are replaced, nothing hides behind a zero of
today: an inactive ReLU, a gate that starts at zero, a mask. What moves by data (an index, a target, a mask) is
treated as if it could point anywhere (see `surrogates`), so a proof depends on operations, constants and shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from clipbench.per_sample.modes import OnlyFakeModes
from clipbench.per_sample.opaque import (
    NoLeaks,
    Nonlinear,
    in_a_row,
    in_own_code,
    note_constants,
    recomputes,
    shows_values,
)
from clipbench.per_sample.owners import Held, Memory, held_by, hold, owners_of, same_memory, whole, with_owners
from clipbench.per_sample.pullback import nodes_below
from clipbench.per_sample.signature import packs_indices
from clipbench.per_sample.spelling import Speller, Unprovable, combine, label_device
from clipbench.per_sample.surrogates import (
    BY_INDEX,
    CLAMPS,
    ELEMENTWISE,
    FACTORIES,
    MOVES,
    PARTS,
    READS_VALUES,
    SCALES,
    SHAPE_ONLY,
    SHARED,
    SURROGATES,
    trusting_indices,
)


class OwnerTracking(TorchDispatchMode):
    """Carries owners beside every gradient of a backward pass, as an attribute of the tensor.

    moving: whether indices may be others another time; calls: knows whether torch's own functions are being called;
    trusting: whether indices that count up do so at every step like this one.
    """

    def __init__(self, n: int, moving: bool, calls: NoLeaks, trusting: bool) -> None:
        super().__init__()
        self.moving, self.calls, self.trusting = moving, calls, trusting
        self.speller = Speller(n)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        leaves = tree_flatten((args, kwargs))[0]
        tracked = [held for leaf in leaves if (held := held_by(leaf)) is not None]
        decides = any(getattr(leaf, "_decides", False) for leaf in leaves)
        own = in_own_code() if tracked or decides else False
        if name in READS_VALUES and (tracked or decides or (self.moving and not recomputes())):
            raise (Nonlinear if own else Unprovable)(f"{name} in a backward pass")
        if self.moving and shows_values(func, leaves):
            raise Unprovable(f"{name} in a function of the user's own")
        out = func(*args, **kwargs)
        note_constants(name, leaves, out)
        straight = not own or in_a_row(func, args, kwargs, out)
        if not straight and not in_a_row(func, args, kwargs, out, keeping=True):
            raise Nonlinear(f"{name} in a function of the user's own")
        if decides or tracked:
            self._mark(out, decides)
        made = name in FACTORIES and not torch.is_grad_enabled()  # with gradients on, a forward is recomputed
        if (own or (made and in_own_code())) and self.calls.depth == 0:
            raise Unprovable(f"{name} by code in another language, which may do more than that")
        if made or tracked:
            with _disable_current_modes():
                call = _Call(func, name, args, kwargs, out, tracked)
                if made:
                    self._make(call.outputs)
                elif name not in SHAPE_ONLY and call.outputs:
                    self._track(call)
                if not straight and any(_shared(tensor) for tensor in call.outputs):
                    raise Nonlinear(f"{name} of several samples together in a function of the user's own")
        return out

    def _mark(self, out: Any, decides: bool) -> None:
        """Remember truth values and numbers that were made of gradients: a program must not decide by them."""
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor) and (decides or not (leaf.is_floating_point() or leaf.is_complex())):
                leaf._decides = True  # type: ignore[attr-defined]

    def _make(self, outputs: Sequence[Tensor]) -> None:
        for tensor in outputs:
            held = held_by(tensor)
            if held is not None:
                held.owners.zero_()
            else:
                hold(tensor, torch.zeros((), device=label_device(tensor)).expand(tensor.shape), Memory(False))

    def _track(self, call: _Call) -> None:
        """Give the outputs of one operation their owners."""
        if call.views:
            self._view(call)
        elif not any(held.memory.written for held in call.tracked):
            self._blank(call)
        elif call.writes:
            (tensor,) = call.outputs
            held = held_by(tensor)
            if held is None:  # a saved value is overwritten: whoever else looks at its memory is not known
                raise Unprovable(f"{call.name} into a saved value")
            if held.memory.frozen:
                raise Unprovable(f"{call.name} into real and imaginary parts")
            held.owners.copy_(self._owners(call)[0])
            held.memory.written = True
        else:
            for tensor, owners in zip(call.outputs, self._owners(call), strict=True):
                if tensor.is_floating_point() or tensor.is_complex():
                    hold(tensor, owners, Memory(True))

    def _view(self, call: _Call) -> None:
        """Owners of a view are the same view of the owners: writing to one shows in the other."""
        if call.name in PARTS:
            self._take_parts(call)
            return
        if call.name == "as_strided" and not same_memory(call.args[0], call.tracked[0].owners):
            raise Unprovable("as_strided of a part")
        try:
            views = tree_flatten(call.func(*with_owners(call.args), **with_owners(call.kwargs)))[0]
        except RuntimeError as error:
            raise Unprovable(f"{call.name}: {error}") from error
        for tensor, owners in zip(call.outputs, views, strict=True):
            tensor._held = Held(owners, call.tracked[0].memory)  # type: ignore[attr-defined]

    def _take_parts(self, call: _Call) -> None:
        """Owners of a complex number and of its parts, or of its conjugate."""
        (held,) = call.tracked
        (tensor,) = call.outputs
        owners = held.owners
        if call.name in ("view_as_real", "view_as_complex"):
            held.memory.frozen = True
            if call.name == "view_as_real":
                owners = owners.unsqueeze(-1).expand(tensor.shape)
            else:
                owners = combine(owners[..., 0], owners[..., 1])
        tensor._held = Held(owners, held.memory)  # type: ignore[attr-defined]

    def _blank(self, call: _Call) -> None:
        """Only zeros come in that were made in this pass and hold no gradient: they may become ordinary values."""
        values = [leaf for leaf in tree_flatten((call.args, call.kwargs))[0] if isinstance(leaf, Tensor)]
        alone = len(values) == len(call.tracked)
        if not call.writes:
            if alone and call.name in MOVES:
                for tensor in call.outputs:
                    hold(tensor, torch.zeros((), device=label_device(tensor)).expand(tensor.shape), Memory(False))
            return
        if alone and call.name in SCALES:
            return
        (tensor,) = call.outputs
        if tensor._is_view():
            raise Unprovable(f"{call.name} into a part of new memory")
        del tensor._held  # type: ignore[attr-defined]

    def _owners(self, call: _Call) -> list[Tensor]:
        """Owners of every output of an operation that makes new tensors, or overwrites its first."""
        base = call.name.rstrip("_")
        padded = call.name == "constant_pad_nd" and any(value != 0 for value in call.args[2:])
        if call.func.namespace != "aten" or call.name in ("fill_", "resize_", "set_") or padded:
            raise Unprovable(call.name)
        if base in ELEMENTWISE or (base in CLAMPS and _keeps_zeros(call)):
            return self._elementwise(call)
        if base in MOVES:
            options = {key: value for key, value in call.kwargs.items() if key != "dtype"}
            return [call.func(*with_owners(call.args, True), **with_owners(options, True))]
        surrogate = SURROGATES.get(base) if self.moving or base not in BY_INDEX else None
        leaves = tree_flatten((call.args, call.kwargs))[0]
        numbers = any(isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()) for x in leaves)
        if surrogate is None and numbers and self.moving:
            return self._anyone(call)
        with trusting_indices(self.trusting and not in_own_code()):
            return self.speller.through(surrogate or call.func, call.args, call.kwargs, call.results, owners_of)

    def _elementwise(self, call: _Call) -> list[Tensor]:
        total = call.tracked[0].owners
        for held in call.tracked[1:]:
            total = combine(total, held.owners)
        return [total.expand(tensor.shape) for tensor in call.outputs]

    def _anyone(self, call: _Call) -> list[Tensor]:
        """Every entry of the outputs may depend on every entry of the inputs."""
        one = whole(torch.cat([held.owners.reshape(1, -1) for held in call.tracked], 1))[0].float()
        return [one.expand(tensor.shape) for tensor in call.outputs]


class _Call:
    """One operation with what went in and came out."""

    def __init__(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        tracked: list[Held],
    ) -> None:
        self.func, self.name, self.args, self.kwargs = func, name, args, kwargs
        self.results = tree_flatten(out)[0]
        self.outputs = [leaf for leaf in self.results if isinstance(leaf, Tensor)]
        self.tracked = tracked
        infos = [argument.alias_info for argument in func._schema.arguments]
        self.writes = any(info is not None and info.is_write for info in infos)
        self.views = not self.writes and any(r.alias_info is not None for r in func._schema.returns)


def _shared(tensor: Tensor) -> bool:
    """Whether several samples may reach an entry of a gradient."""
    owners = owners_of(tensor)
    return owners is not None and bool((owners == SHARED).any())


def _keeps_zeros(call: _Call) -> bool:
    """Whether a function of single entries makes zero of zero."""
    gradient, *rest = call.args
    if any(isinstance(value, Tensor) for value in (*rest, *call.kwargs.values())):
        return False
    zero = torch.zeros(1, dtype=gradient.dtype, device="cpu")
    return not call.func(zero, *rest, **call.kwargs).any()


def track_owners(losses: Tensor, edges: Sequence[Any], moving: bool = True) -> list[Tensor | None]:
    """Owners of the gradients at `edges`, for losses (n,); None where no loss can reach. Keeps the graph.

    moving: whether that has to hold wherever data may move entries, or for the indices of this graph alone. Raises
    Unprovable, or Nonlinear. Reads no value of the losses or the model, but for these: works on tensors without
    values, too.
    """
    n = losses.shape[0]
    with OnlyFakeModes():
        ones = torch.ones_like(losses)
        with _disable_current_modes():
            numbers = torch.arange(1, n + 1, dtype=torch.float32, device=label_device(ones))
            hold(ones, numbers, Memory(True))
        end = get_gradient_edge(losses)  # from edge to edge, so that torch does not leave the mode for functions
        calls = NoLeaks(moving)
        trusting = not any(map(packs_indices, nodes_below([losses.grad_fn])))  # signatures do not show packed ones
        with OwnerTracking(n, moving, calls, trusting), calls:
            deltas = torch.autograd.grad(end, list(edges), ones, retain_graph=True, allow_unused=True)
    if any(delta is not None and held_by(delta) is None for delta in deltas):
        raise Unprovable("a gradient that came another way")
    return [owners_of(delta) for delta in deltas]
