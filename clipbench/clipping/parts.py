"""What of each gradient lies on this process, as real dense tensors: of plain, sparse, complex and sharded ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from clipbench.clipping.lengths import norms
from clipbench.clipping.selection import matches

NamedParameters = Iterable[tuple[str, nn.Parameter]] | Iterable[nn.Parameter]
CLASS = "torch.distributed.tensor"  # imported only where somebody else has done so: it takes half a second


def pairs(parameters: NamedParameters, named: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters; plain parameters are named by their place. Raises ValueError for these where `named`."""
    items: Iterable[Any] = [parameters] if isinstance(parameters, Tensor) else parameters
    for place, item in enumerate(items):
        if not isinstance(item, Tensor):
            yield item
        elif named:
            raise ValueError("named_parameters must be named, as model.named_parameters() gives them, got a parameter")
        else:
            yield f"parameter {place}", cast(nn.Parameter, item)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP2 and tensor parallelism have them."""
    return type(tensor) is not Tensor and type(tensor).__module__.startswith(CLASS)


class Parts(NamedTuple):
    """names; whole: the gradients as they are; local: views to write to, which share memory with them."""

    names: list[str]
    whole: list[Tensor]
    local: list[Tensor]

    def without(self, skip: Sequence[str]) -> Parts:
        """The parts whose names no pattern of `skip` matches."""
        keep = [place for place, name in enumerate(self.names) if not matches(name, skip)] if skip else None
        if keep is None:
            return self
        return Parts([self.names[i] for i in keep], [self.whole[i] for i in keep], [self.local[i] for i in keep])

    def norms(self) -> Tensor:
        """Norm of each WHOLE gradient, float64 (len(names),): of a sharded one over all processes."""
        lengths = norms(self.local)
        places = [place for place, grad in enumerate(self.whole) if is_sharded(grad)]
        return _over_processes(lengths, self.whole, places) if places else lengths


def parts(parameters: NamedParameters, named: bool = False, real: bool = False, dense: bool = False) -> Parts:
    """The gradients of the parameters that have one.

    Sparse gradients (COO) are coalesced and lend their values; complex ones lend real and imaginary parts. Raises
    ValueError with the parameter's name: complex where `real`, sparse where `dense`, any other layout, and a gradient
    of which each process holds a summand only.
    """
    names, whole, local = [], [], []
    for name, parameter in pairs(parameters, named):
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout == torch.sparse_coo and not dense:
            grad = parameter.grad = grad.coalesce()
        names.append(name)
        whole.append(grad)
        local.append(_local(name, grad, real, dense))
    return Parts(names, whole, local)


def _local(name: str, grad: Tensor, real: bool, dense: bool) -> Tensor:
    part = grad
    if type(grad) is Tensor and grad.layout == torch.strided and not grad.is_complex():
        return grad
    if is_sharded(grad):
        if any(placement.is_partial() for placement in grad.placements):  # type: ignore[attr-defined]
            raise ValueError(f"named_parameters must have gradients that are summed, got {grad.placements} for {name}")  # type: ignore[attr-defined]
        part = own(grad)
    elif grad.layout == torch.sparse_coo and not dense:
        part = grad._values()
    elif grad.layout != torch.strided:
        raise ValueError(f"named_parameters must have dense gradients, got {grad.layout} for {name}")
    if part.is_complex():
        if real:
            raise ValueError(f"named_parameters must have real gradients, got {grad.dtype} for {name}")
        part = torch.view_as_real(part.conj() if part.is_conj() else part)
    return part


def _over_processes(lengths: Tensor, whole: list[Tensor], places: list[int]) -> Tensor:
    """Norms of whole gradients from those of the local parts, one reduction for each kind of placement."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    groups: dict[Any, list[int]] = {}
    for place in places:
        grad: Any = whole[place]
        kinds = tuple(Partial("sum") if placement.is_shard() else Replicate() for placement in grad.placements)
        groups.setdefault((grad.device_mesh, kinds), []).append(place)
    for (mesh, kinds), members in groups.items():
        index = torch.tensor(members, device=lengths.device)
        # Squares of norms up to 1e38 · √entries stay within float64.
        squares = DTensor.from_local(lengths[index].square(), mesh, kinds, run_check=False)
        lengths = lengths.index_copy(0, index, squares.full_tensor().sqrt())
    return lengths


def own(grad: Tensor) -> Tensor:
    """This process's share of a sharded gradient; anything else as it is."""
    return grad.to_local() if is_sharded(grad) else grad  # type: ignore[attr-defined]


def gathered(grad: Tensor) -> Tensor:
    """The whole of a sharded gradient, on every process; anything else as it is."""
    return grad.full_tensor() if is_sharded(grad) else grad  # type: ignore[attr-defined]


def put_back(grad: Tensor, whole: Tensor) -> None:
    """Write this process's share of `whole` into a sharded gradient."""
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = grad
    copies = DTensor.from_local(whole, sharded.device_mesh, [Replicate()] * sharded.device_mesh.ndim, run_check=False)
    sharded.to_local().copy_(copies.redistribute(placements=sharded.placements).to_local())
