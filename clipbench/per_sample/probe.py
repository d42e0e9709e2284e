"""The check at a first step: does a sample's loss depend on that sample's rows alone, and in which order are they?

The rules take a row of δ for one position of one sample. That holds for ordinary models, but not where samples are
mixed (a contrastive loss, a norm over the batch), and a flattened (time, batch) tensor has its rows in another order
than (batch, time). Both show in the gradient of ONE loss: it must vanish on every row of the other samples.
The check costs one more backward at the first step of a model and reads values from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from clipbench.per_sample.layout import Layout
from clipbench.per_sample.rules import Use

Verdict = Layout | Literal["mixed", "unseen"]
"""A use's layout; "mixed" where rows of several samples depend on one loss; "unseen" where no gradient arrived."""
TOLERANCE = 1e-10
"""Share of the squared gradient that may lie outside the sample's rows (rounding leaves exactly none)."""


def readable(tensor: Tensor) -> bool:
    """Whether values may be read at all: not while tracing, compiling, capturing a CUDA graph or with fake tensors."""
    if type(tensor) is not Tensor or _get_current_dispatch_mode_stack() or torch.compiler.is_compiling():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def probe_layouts(losses: Tensor, uses: Sequence[Use]) -> list[Verdict]:
    """The verdict on every use. Raises ValueError where all are mixed."""
    if not uses:
        return []
    n = losses.shape[0]
    sample = n // 2
    edges = [use.edges[0] for use in uses]
    with torch.enable_grad():
        chosen = losses[sample]
    deltas = torch.autograd.grad(chosen, edges, retain_graph=True, allow_unused=True)
    table = []
    for use, delta in zip(uses, deltas, strict=True):
        # In float64: the parts are compared with the whole, and a float32 sum depends on its order by 1e-7.
        energy = use.row_sizes(delta).double().square() if delta is not None else losses.new_zeros(use.rows)
        inside = [layout.split(energy, n)[sample].sum() for layout in Layout]
        table.append(torch.stack([energy.sum(), *inside]).double())
    verdicts = [_verdict(use, row) for use, row in zip(uses, torch.stack(table).tolist(), strict=True)]
    if all(verdict == "mixed" for verdict in verdicts) and any(n in use.lead for use in uses):
        raise ValueError(
            "losses must depend on one sample each, got losses that mix samples: the gradient of one of them reaches "
            "the others' rows in every layer (a batch statistic, a contrastive loss, or the mean taken too early?)"
        )
    return verdicts


def _verdict(use: Use, row: list[float]) -> Verdict:
    total, inside = row[0], dict(zip(Layout, row[1:], strict=True))
    if not 0.0 < total < float("inf"):
        return "unseen"
    fitting = [layout for layout in Layout if total - inside[layout] <= TOLERANCE * total]
    if use.layout in fitting:
        return use.layout
    return fitting[0] if fitting else "mixed"
