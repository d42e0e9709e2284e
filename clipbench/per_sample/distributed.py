"""Data-parallel training: every rank clips its own samples, and the contributions are summed over the ranks.

DistributedDataParallel reduces in hooks on the parameters' own autograd nodes. The clipper never runs those nodes, so
nothing is reduced twice, and nothing at all unless it is done here. What cannot be reduced is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    Group = dist.ProcessGroup
    GroupChoice = Group | None | Literal["auto"]

BUCKET = 25 * 2**20
"""Bytes of gradients that travel in one message, as in DistributedDataParallel."""


class Ranks:
    """The ranks over which a step's samples are spread, seen from one of them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._waiting: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def place(self, n: int, offset: int, total: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples before this rank's part and samples in all, 0-dim integers on `device`; nothing is read from it.

        n, offset, total: this rank's own. In the order of the whole step come first the earlier parts of all ranks,
        then this part of ranks 0, 1, ….
        """
        own = torch.tensor([n, offset, total], device=device)
        counts = own.new_empty(3 * self.size)
        dist.all_gather_into_tensor(counts, own, group=self.group)
        table = counts.view(self.size, 3)
        return table[: self.rank, 0].sum() + table[:, 1].sum(), table[:, 2].sum()

    def add_up(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def reduce(self, params: Sequence[Tensor]) -> None:
        """Make every parameter's `.grad` the sum over the ranks; it stays None where no rank has any."""
        have = torch.tensor([float(param.grad is not None) for param in params], device=params[0].device)
        dist.all_reduce(have, group=self.group)
        missing = [place for place, param in enumerate(params) if param.grad is None]
        for place in missing:
            params[place].grad = torch.zeros_like(params[place])
        for bucket in _buckets([param.grad for param in params if param.grad is not None]):
            self._reduce_bucket(bucket)
        if missing:  # only then a value is read, as DistributedDataParallel(find_unused_parameters=True) does
            used = have.tolist()
            for place in missing:
                if not used[place]:
                    params[place].grad = None

    def _reduce_bucket(self, grads: list[Tensor]) -> None:
        real = [torch.view_as_real(grad) if grad.is_complex() else grad for grad in grads]
        flat = torch.cat([grad.flatten() for grad in real])
        dist.all_reduce(flat, group=self.group)
        for grad, part in zip(real, flat.split([grad.numel() for grad in real]), strict=True):
            grad.copy_(part.view_as(grad))

    def share(self, params: Sequence[Tensor]) -> None:
        """Before a step that stays on this rank, as under `no_sync()`: divide by the ranks what was reduced before.

        The sum that comes later then leaves it as it is.
        """
        for param in params:
            if param.grad is not None and not self.waits(param.grad):
                param.grad /= self.size

    def leave(self, params: Sequence[Tensor]) -> None:
        """After such a step: these gradients wait for a later sum."""
        for param in params:
            if param.grad is not None:
                self._waiting.add(param.grad)

    def waits(self, grad: Tensor) -> bool:
        """Whether this `.grad` holds what was not yet summed."""
        return any(grad is other for other in self._waiting)

    def settle(self) -> None:
        """After a sum nothing waits."""
        self._waiting = weakref.WeakSet()


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device together, up to BUCKET bytes, in their order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for grad in grads:
        kinds.setdefault((grad.dtype, grad.device), []).append(grad)
    for kind in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for grad in kind:
            if bucket and size + grad.nbytes > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(grad)
            size += grad.nbytes
        yield bucket


def group_of(model: nn.Module, choice: GroupChoice) -> Group | None:
    """The ranks to sum over; None where this process trains alone. Raises ValueError for what cannot be reduced."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    _refuse_shards(model)
    if isinstance(model, DistributedDataParallel):
        _refuse_options(model)
        return model.process_group if choice == "auto" else choice  # type: ignore[no-any-return]
    if choice != "auto":
        return choice
    if dist.get_world_size() > 1:
        raise ValueError(
            "model must be the DistributedDataParallel wrapper, or process_group say which ranks' gradients are "
            f"summed (None: this process trains alone), got a {type(model).__name__} and process_group='auto' on one "
            f"of {dist.get_world_size()} ranks"
        )
    return None


def _refuse_options(model: DistributedDataParallel) -> None:
    refused = {
        "DistributedDataParallel(static_graph=True)": model.static_graph,
        "DistributedDataParallel(mixed_precision=…), which computes with copies (use torch.autocast)": (
            model.mixed_precision is not None
        ),
        "DistributedDataParallel inside join() (call backward on every rank, with losses of shape (0,) where no data "
        "is left)": model._join_config.enable,
    }
    for what, present in refused.items():
        if present:
            raise ValueError(f"model must reduce nothing by itself in a backward pass, got {what}")


def _refuse_shards(model: nn.Module) -> None:
    """FSDP, FSDP2 and tensor parallelism keep parts of parameters: the norm of a part is not the norm."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharding = (FSDPModule, FullyShardedDataParallel)
    shards = [f"{type(m).__name__} '{name}'" for name, m in model.named_modules() if isinstance(m, sharding)]
    shards += [f"'{name}' as a DTensor" for name, param in model.named_parameters() if isinstance(param, DTensor)]
    if shards:
        raise ValueError(
            f"model must hold whole parameters on every rank, got {shards[0]} (FSDP or tensor parallelism); use "
            "DistributedDataParallel"
        )


def stays_local(model: nn.Module) -> bool:
    """Whether the step is under DistributedDataParallel's `no_sync()`."""
    return isinstance(model, DistributedDataParallel) and not model.require_backward_grad_sync
