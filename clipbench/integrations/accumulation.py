"""Per-sample clipping of a batch that comes in parts, where a framework divides by the number of parts."""

from __future__ import annotations

from torch import Tensor

from clipbench.per_sample import PerSampleClipper, SampleClipStats


class Window:
    """The parts between two optimizer steps: each call adds one part's share of the mean over all.

    Frameworks give every part the weight 1/parts, whatever its size; so does this. Samples are counted on over the
    parts (k of a PowerThreshold); a part smaller than those before it counts from where its own size puts it.
    """

    def __init__(self) -> None:
        self.done = 0
        self.seen = 0

    def restart(self) -> None:
        """The next part is the first of a new window."""
        self.done = self.seen = 0

    def backward(
        self, clipper: PerSampleClipper, losses: Tensor, parts: int, scale: float | Tensor = 1.0
    ) -> SampleClipStats:
        """`clipper.backward` of losses (n,) as one of `parts`; `scale`: a GradScaler's, which they have."""
        if self.done >= parts:
            self.restart()
        n = len(losses)
        stats = clipper.backward(losses, min(self.seen, (parts - 1) * n), parts * n, scale)
        self.done, self.seen = self.done + 1, self.seen + n
        return stats
