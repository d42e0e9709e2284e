"""Per-sample gradient clipping at the price of plain SGD. Imports nothing but torch.

    from clipbench.per_sample import PerSampleClipper, PowerThreshold

    clipper = PerSampleClipper(model, PowerThreshold(alpha=5.0, beta=2.0))
    losses = criterion(model(x), y)          # (n,), one loss per sample
    stats = clipper.backward(losses)         # instead of losses.mean().backward()
    optimizer.step()

What is guaranteed: norms are right or refused, never guessed. Every row of every layer's output is KNOWN to belong to
one sample, or its parameters' gradients are taken in a way that does not need it, in the end by one backward pass a
sample. Rows may be time first, packed, ragged, routed, masked, sorted or cut; samples that mix in every layer are
refused (ValueError). Known means proven from the graph's operations, for any data, or else measured at that very step
on all samples and rows (see `placement`; what rounding hides in the gradients themselves cannot be measured).

What it costs: a proof, about three plain steps, once for every graph (operations, constants and shapes); proven steps
cost nothing more and never wait for the device. Where rows move by data, or shapes are new at every step, a step
takes two or three more backward passes to the layers' outputs and reads values. On tensors without values, while
tracing and while a CUDA graph is captured, what would have to be measured takes the slow path; take one ordinary step
before capturing. `torch.compile` cannot see through the walk over the autograd graph, but traces what it leads to: a
whole step as a function, traced by `torch.fx.experimental.proxy_tensor.make_fx`, compiles as one graph.

Read in this order: `clipper` (what users call), `engine` (one step), `graph` and `slots` (which node reads which
parameter), `rules` (norms and weighted sums by kind of layer), `factors` and `cost` (the arithmetic and its price),
`joint` (tied weights), `derived` and `pullback` (what is computed from parameters alone), `fallback` (the slow path);
and for whose row is whose: `placement`, `layout`, `signature` (what a proof holds for), `dependence` with `spelling`
and `surrogates` (the proof), `probe` (the measurement).
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
