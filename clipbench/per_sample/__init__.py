"""Per-sample gradient clipping at the price of plain SGD. Imports nothing but torch.

    from clipbench.per_sample import PerSampleClipper, PowerThreshold

    clipper = PerSampleClipper(model, PowerThreshold(alpha=5.0, beta=2.0))
    losses = criterion(model(x), y)          # (n,), one loss per sample
    stats = clipper.backward(losses)         # instead of losses.mean().backward()
    optimizer.step()

A step never waits for the device: its first one on a new model does (see `probe`), so take one ordinary step before
capturing a CUDA graph. `torch.compile` cannot see through the walk over the autograd graph, but traces what it leads
to: a whole step as a function, traced by `torch.fx.experimental.proxy_tensor.make_fx`, compiles as one graph.

Read in this order: `clipper` (what users call), `engine` (one step), `graph` (which node reads which parameter),
`rules` (norms and weighted sums by kind of layer), `factors` and `cost` (the arithmetic and its price), `joint` (tied
weights), `fallback` (the slow path), `probe` (the check at the first step).
"""

from clipbench.per_sample.clipper import ClipStats, PerSampleClipper
from clipbench.per_sample.thresholds import PowerThreshold
from clipbench.per_sample.weights import AdaptiveWeight, AutomaticWeight, NormalizedWeight, SmoothWeight

__all__ = [
    "AdaptiveWeight",
    "AutomaticWeight",
    "ClipStats",
    "NormalizedWeight",
    "PerSampleClipper",
    "PowerThreshold",
    "SmoothWeight",
]
