"""Per-sample gradient clipping at the price of plain SGD. Imports nothing but torch.

    from clipbench.per_sample import PerSampleClipper, PowerThreshold

    clipper = PerSampleClipper(model, PowerThreshold(alpha=5.0, beta=2.0))
    losses = criterion(model(x), y)          # (n,), one loss per sample
    stats = clipper.backward(losses)         # instead of losses.mean().backward()
    optimizer.step()

What is guaranteed: norms are right or refused, never guessed. Every row of every layer's output is KNOWN to belong to
one sample, or its parameters' gradients are taken in a way that does not need it, in the end by one backward pass a
sample. Rows may be time first, packed, ragged, routed, masked, sorted or cut. Samples that mix in every layer are
refused (ValueError), as far as a graph tells them from constants that all samples share (see `mixing`). Known means
proven from the graph's operations, for any data, or else measured at that very step on all samples and rows (see
`placement`), brought level before, so that what rounding may hide of a sample there is small beside that sample itself.
Gradients may be of any size that their dtype holds, and positions may cancel: what squares or a Gram form would lose is
computed again in float64 (see `care`). A sample that is not finite is dropped alone; with it goes the batch only where
an operation of the user's own, or the slow path, sums over samples unseen.

The backward of a function of the user's own may do anything in Python: move rows by what it reads, limit its gradient,
compare it with others'. Then each sample's gradient is what that sample's loss alone would have, and their sum is taken
over single samples; below a function that is not sure to be linear in its gradients that takes n backward passes. Code
in other languages (C++, Triton) is taken to be linear, and measured; a function that hides layers is refused. What
Python code looks at is found by a list of ways to look (see `surroundings`), so of such functions the guarantee is as
good as that list, where of torch's own operations it is by construction; `verify=True` tells. What a hook does shows in
no graph (see `PerSampleClipper`).

What it costs: a proof, some five to nine plain steps on small models and CPUs, once for every graph (operations,
constants and shapes), and seconds at the first one of a process, for what torch imports; proven steps cost nothing
more and never wait for the device. Where rows move by data, or shapes are new at every step, a step takes two or
three more backward passes to the layers' outputs and reads values (packed LSTMs and GRUs of ever-new lengths: about
four plain steps in all); two or three more where samples differ by more than 2¹⁰. Norms asked for a second time cost
about that of the first twice. On accelerators nothing is asked for twice: squares are summed in float64 at every
step. On tensors without values, while tracing and while a CUDA graph is captured, what would have to be measured
takes the slow path; take one ordinary step before capturing. `torch.compile` cannot see through the walk over the
autograd graph, but traces what it leads to: a whole step as a function, traced by
`torch.fx.experimental.proxy_tensor.make_fx`, compiles as one graph.

Read in this order: `clipper` (what users call), `engine` (one step), `graph` and `slots` (which node reads which
parameter), `rules` (norms and weighted sums by kind of layer), `factors` and `cost` (the arithmetic and its price),
`care` and `total` (of what size numbers may be), `joint` (tied weights), `derived` and `pullback` (what is computed
from parameters alone), `fallback` (the slow path), `frozen` (BatchNorm in training, where asked for); and for whose row
is whose: `placement`, `layout`, `signature` (what a proof holds for; and with `replay` how a graph is read again),
`dependence` with `owners`, `spelling`, `surrogates`, `opaque`, `linearity`, `surroundings`, `modes` (the proof),
`measure` with `probe` and `balance` (the measurement), `hooks` (what shows in no graph), `mixing` (what is refused).
"""

from clipbench.per_sample.clipper import ClipStats, PerSampleClipper, SampleClipStats
from clipbench.per_sample.frozen import freeze_batch_statistics
from clipbench.per_sample.thresholds import PowerThreshold
from clipbench.per_sample.weights import AdaptiveWeight, AutomaticWeight, NormalizedWeight, SmoothWeight

__all__ = [
    "AdaptiveWeight",
    "AutomaticWeight",
    "ClipStats",
    "NormalizedWeight",
    "PerSampleClipper",
    "PowerThreshold",
    "SampleClipStats",
    "SmoothWeight",
    "freeze_batch_statistics",
]
