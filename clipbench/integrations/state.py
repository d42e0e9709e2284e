"""What of a clipper belongs in a checkpoint, whichever kind it is."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_leaves

from clipbench.clipping import Clipper
from clipbench.per_sample import PerSampleClipper

AnyClipper = Clipper | PerSampleClipper
PARTS = ("threshold", "weight")  # what of a per-sample clipper may remember


def check_clipper(clipper: AnyClipper) -> AnyClipper:
    """`clipper`, or ValueError where it is neither a rule on gradients nor a per-sample clipper."""
    if not isinstance(clipper, Clipper | PerSampleClipper):
        raise ValueError(f"clipper must be a Clipper or a PerSampleClipper, got {clipper!r}")
    return clipper


class ClipperState:
    """`state_dict` and `load_state_dict` of any clipper; a per-sample clipper's is that of its threshold and weight."""

    def __init__(self, clipper: AnyClipper) -> None:
        self.clipper = check_clipper(clipper)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        if isinstance(self.clipper, PerSampleClipper):
            return {
                name: part.state_dict() for name in PARTS if hasattr(part := getattr(self.clipper, name), "state_dict")
            }
        return self.clipper.state_dict()

    @property
    def remembers(self) -> bool:
        """Whether there is anything in its state."""
        return bool(tree_leaves(self.state_dict()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the clipper that gave `state` stopped."""
        if not isinstance(self.clipper, PerSampleClipper):
            self.clipper.load_state_dict(state)
            return
        for name, part in state.items():
            getattr(self.clipper, name).load_state_dict(part)
