"""The comparison with the slow twin fails when a rule is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clipbench.per_sample import clipper, derived, engine, factors, joint, placement, pullback
from clipbench.per_sample.fallback import SlowGradients
from clipbench.per_sample.layout import Layout, SampleWeights
from clipbench.per_sample.rules import convolution, embedding, linear, lstm, normalization, products, taps, windows
from clipbench.per_sample.rules.bags import BagUse
from clipbench.per_sample.rules.bilinear import BilinearUse
from clipbench.per_sample.rules.convolution import ConvolutionUse
from clipbench.per_sample.rules.node import NodeUse
from clipbench.per_sample.rules.products import BatchedProductUse
from tests.per_sample.common import errors
from tests.per_sample.zoo import CASES, SLOW_PATH


def scaled(function: Callable[..., Any], factor: float = 1.01) -> Callable[..., Any]:
    """The same result, one percent off."""
    return lambda *arguments, **options: function(*arguments, **options) * factor


def scaled_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same list of tensors, each one percent off."""
    return lambda *arguments: [None if g is None else g * 1.01 for g in function(*arguments)]


BREAKS: dict[str, tuple[Any, str, Callable[..., Any], list[str]]] = {
    "norm of an outer product": (linear, "outer_norms", scaled(factors.outer_norms), ["linear"]),
    "Gram form": (factors, "gram_form", scaled(factors.gram_form), ["linear, wide on sequences"]),
    "instantiated form": (factors, "instantiated_form", scaled(factors.instantiated_form), ["linear on four axes"]),
    "bias left out": (
        linear,
        "factor_norms",
        lambda left, right, bias: factors.factor_norms(left, right, False),
        ["linear on sequences"],
    ),
    "window sums": (convolution, "window_sums", scaled(windows.window_sums), ["conv2d on a 2 × 2 map"]),
    "taps": (convolution, "weight_by_taps", scaled(taps.weight_by_taps), ["conv2d on a 2 × 2 map"]),
    "unfolding": (convolution, "unfold", scaled(windows.unfold), ["conv2d wide"]),
    "samples as groups": (ConvolutionUse, "formed", scaled(ConvolutionUse.formed), ["conv2d dilated, grouped"]),
    "embedding": (embedding, "gram_sum", scaled(factors.gram_sum), ["embedding"]),
    "tied table": (joint, "table_norms", scaled(joint.table_norms), ["tied, large table"]),
    "sub-graph": (derived, "batched", scaled_rows(pullback.batched), ["weight norm", "tied through others"]),
    "sums through a sub-graph": (derived, "products", scaled_rows(pullback.products), ["weight norm"]),
    "a node by itself": (NodeUse, "gradients", scaled_rows(NodeUse.gradients), ["power"]),
    "cross terms through a sub-graph": (
        derived,
        "add_rows",
        lambda totals, slot, rows: totals.setdefault(id(slot.param), rows.reshape(len(rows), *slot.part_shape)),
        ["tied through others"],
    ),
    "bilinear": (BilinearUse, "norms", scaled(BilinearUse.norms), ["bilinear"]),
    "bags": (BagUse, "norms", scaled(BagUse.norms), ["embedding bag"]),
    "heads": (BatchedProductUse, "instances", scaled(BatchedProductUse.instances), ["heads"]),
    "matrix from the left": (products, "factor_norms", scaled(factors.factor_norms), ["matrix from the left"]),
    "clipping": (clipper, "clip_weight", lambda norms, tau: (tau / norms).clamp(max=1.001), ["linear"]),
    "γ spread over rows": (
        Layout,
        "spread",
        lambda self, values, rows: values.repeat(rows // len(values)),
        ["linear on sequences"],
    ),
    "γ itself": (
        SampleWeights,
        "column",
        lambda self, layout, rows, dtype: torch.full((rows, 1), 0.1).to(dtype),
        ["linear"],
    ),
    "cross terms": (
        engine,
        "joint_norms",
        lambda group: torch.stack([use.norms([role]) for use, role in group]).norm(dim=0),
        ["tied embedding", "called twice"],
    ),
    "joint factors": (joint, "factor_norms", scaled(factors.factor_norms), ["tied linear"]),
    "LSTM": (lstm, "factor_norms", scaled(factors.factor_norms), ["lstm"]),
    "slow path": (SlowGradients, "norms", scaled(SlowGradients.norms), ["two outputs"]),
    "layer norm": (normalization.LayerNormUse, "form", scaled(normalization.LayerNormUse.form), ["layer norm"]),
    "layout not checked": (
        placement.Placement,
        "_confirmed",
        lambda self, losses, uses, verdicts: [Layout.MAJOR] * len(uses),
        ["attention, time first"],
    ),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_a_broken_rule_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, broken, cases = BREAKS[name]
    monkeypatch.setattr(where, attribute, broken)
    for case in cases:
        torch.manual_seed(0)
        build, inputs = {**CASES, **SLOW_PATH}[case]
        assert max(errors(build(), inputs())) > 1e-4, case
