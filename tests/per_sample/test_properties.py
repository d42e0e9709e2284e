"""Shapes, strides, groups and batch sizes drawn at random; and the forms of a norm against one another."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clipbench.per_sample import PerSampleClipper
from clipbench.per_sample.factors import SHARE, factor_norms, gram_form, instantiated_form, row_norms
from clipbench.per_sample.rules.taps import weight_by_taps
from clipbench.per_sample.rules.windows import Geometry, unfold, window_sums
from tests.per_sample.common import errors, flat_gradient, square_loss
from tests.reference.per_sample import sample_gradients

small = st.integers(1, 4)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    groups = data.draw(st.integers(1, 2))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    dilation = data.draw(st.tuples(*[st.integers(1, 2)] * dims))
    options = {
        "stride": data.draw(st.tuples(*[st.integers(1, 3)] * dims)),
        "padding": data.draw(st.tuples(*[st.integers(0, 2)] * dims)),
        "bias": data.draw(st.booleans()),
    }
    space = [(k - 1) * d + data.draw(st.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True)]
    channels = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    model = kinds[dims - 1](*channels, kernel, dilation=dilation, groups=groups, **options).double()
    assert max(errors(model, torch.randn(data.draw(small), channels[0], *space).double())) < 1e-11


@settings(max_examples=25, deadline=None)
@given(n=small, lead=st.lists(st.integers(1, 6), max_size=3), d=st.tuples(st.integers(1, 9), st.integers(1, 9)),
       bias=st.booleans(), norm=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_linear_with_any_leading_axes(
    n: int, lead: list[int], d: tuple[int, int], bias: bool, norm: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    middle = nn.LayerNorm(d[1]) if norm and d[1] > 1 else nn.Tanh()
    model = nn.Sequential(nn.Linear(*d, bias=bias), middle, nn.Linear(d[1], 3)).double()
    assert max(errors(model, torch.randn(n, *lead, d[0]).double())) < 1e-10


@settings(max_examples=25, deadline=None)
@given(n=small, positions=st.integers(1, 12), p=st.integers(1, 12), q=st.integers(1, 12), bias=st.booleans())
def test_all_forms_of_a_norm_agree(n: int, positions: int, p: int, q: int, bias: bool) -> None:
    left, right = torch.randn(n, positions, p).double(), torch.randn(n, positions, q).double()
    grads = [left.transpose(1, 2) @ right] + ([left.sum(1, keepdim=True)] if bias else [])
    wanted = torch.cat([g.flatten(1) for g in grads], 1).norm(dim=1)
    for form in (gram_form, instantiated_form, factor_norms):
        found = form(left, right, bias)
        doubt = found.isinf()  # to be asked for again: only a Gram form does so, where positions cancel
        torch.testing.assert_close(found[~doubt], wanted[~doubt], rtol=1e-10, atol=1e-7)
        traces = left.square().sum((1, 2)) * (right.square().sum((1, 2)) + bias * positions)
        assert (wanted[doubt].square() <= SHARE * traces[doubt]).all()
        assert form is not instantiated_form or not doubt.any()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_windows_of_the_input_gram(data: st.DataObject) -> None:
    """⟨u_p, u_q⟩ from the input's own Gram matrix, as a matrix and as slices, and the weight gradient tap by tap."""
    size, step, pad, spread = (data.draw(st.integers(1, 3)) for _ in range(4))
    geometry = Geometry((size, 2), (step, 1), (pad, 0), (spread, 1))
    space = ((size - 1) * spread + data.draw(st.integers(1, 9)), data.draw(st.integers(2, 12)))
    out = ((space[0] + 2 * pad - (size - 1) * spread - 1) // step + 1, space[1] - 1)
    x, delta = torch.randn(2, 3, *space).double(), torch.randn(2, 4, *out).double()
    u = unfold(x, geometry, out, 1)[:, 0]
    gram = torch.einsum("nci,ncj->nij", x.flatten(2), x.flatten(2))
    torch.testing.assert_close(window_sums(gram, geometry, space, out), u @ u.transpose(1, 2))
    wanted = torch.einsum("nop,npk->ok", delta.flatten(2), u).view(4, *geometry.kernel, 3).movedim(-1, 1)
    torch.testing.assert_close(weight_by_taps(x, delta, geometry), wanted)


def test_long_rows_keep_their_precision() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 3_000_000)  # torch's own norm is 5e-5 off
    wanted = rows.double().norm(dim=1)
    torch.testing.assert_close(row_norms(rows).double(), wanted, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(row_norms(rows[:, :-1]).double(), rows[:, :-1].double().norm(dim=1), rtol=1e-6, atol=0.0)


@settings(max_examples=20, deadline=None)
@given(tau=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_every_sample_stays_within_its_threshold(tau: float, seed: int) -> None:
    """The bound holds, clipping twice is clipping once, and an infinite threshold is the plain mean."""
    torch.manual_seed(seed)
    model, x = nn.Linear(4, 3).double(), torch.randn(1, 4).double()
    PerSampleClipper(model, tau).backward(square_loss(model, x))
    once = flat_gradient(model)
    assert once.norm() <= tau * (1 + 1e-12)
    norm = sample_gradients(model, square_loss, x).norm()
    torch.testing.assert_close(once.norm(), min(norm, torch.tensor(tau).double()))
    model.zero_grad()
    batch = torch.randn(6, 4).double()
    PerSampleClipper(model, float("inf")).backward(square_loss(model, batch))
    torch.testing.assert_close(flat_gradient(model), sample_gradients(model, square_loss, batch).mean(0))
