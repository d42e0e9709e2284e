"""Owners proven from the graph: never fewer than the losses that reach an entry, and no more where a proof is due."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, placement, surrogates
from clipbench.per_sample.dependence import Unprovable, track_owners
from clipbench.per_sample.owners import whole
from clipbench.per_sample.placement import prove
from tests.per_sample.ragged import MODELS, error, squares, uses_of
from tests.per_sample.zoo import CASES


def check_superset(losses: Tensor, model: nn.Module) -> list[Tensor]:
    """Owners at every use's edges; every gradient of every loss lies where it may."""
    edges = [edge for use in uses_of(losses, model) for edge in use.edges]
    owners = track_owners(losses, edges)
    for k, loss in enumerate(losses):
        deltas = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
        for own, delta in zip(owners, deltas, strict=True):
            if own is None:
                assert delta is None
            elif delta is not None:
                assert ((delta == 0) | (own == k + 1) | (own == surrogates.SHARED)).all()
    return [own for own in owners if own is not None]


@pytest.mark.parametrize("name", MODELS)
def test_ragged_models(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    for n in (2, 5, 40):
        check_superset(model(model.batch(n)), model)


@pytest.mark.parametrize("name", [name for name in CASES if name != "checkpointed"])
def test_all_layers_are_proven(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = CASES[name]
    model = build()
    losses = squares(model(inputs()))
    check_superset(losses, model)
    uses = uses_of(losses, model)
    assert "measure" not in prove(losses, uses)


N, T = 4, 5
Path = Callable[[Tensor], Tensor]
INDEX = torch.tensor([2, 0, 1, 3])

KEPT_APART: dict[str, Path] = {
    "relu": lambda h: h.relu(),
    "clamp": lambda h: h.clamp(-0.1, 0.1),
    "hardtanh": F.hardtanh,
    "softmax over time": lambda h: h.softmax(1),
    "mask by where": lambda h: torch.where(h > 0, h, 2 * h.sum(2, keepdim=True)),
    "masked fill": lambda h: h.masked_fill(h > 0, 0.0),
    "cumulative sum": lambda h: h.cumsum(1),
    "maximum over time": lambda h: h.amax(1, keepdim=True),
    "maximum with index": lambda h: h.max(1, keepdim=True)[0],
    "sorted over time": lambda h: h.sort(1)[0],
    "best three": lambda h: h.topk(3, dim=1)[0],
    "gathered over time": lambda h: h.gather(1, torch.randint(0, T, (N, 2, 3))),
    "picked steps": lambda h: h[:, torch.randint(0, T, (2,))],
    "picked step of each": lambda h: h[torch.arange(N), torch.randint(0, T, (N,))],
    "two steps of each": lambda h: h[torch.arange(N)[:, None], torch.randint(0, T, (N, 2))],
    "scattered over time": lambda h: torch.zeros(N, T, 3).scatter_add(1, torch.randint(0, T, (N, T, 3)), h),
    "put over time": lambda h: torch.zeros(N, T, 3).index_add(1, torch.randint(0, T, (T,)), h),
    "pooled": lambda h: F.max_pool1d(h, 3),
    "padded": lambda h: F.pad(h, (1, 1, 0, 2)),
    "stacked": lambda h: torch.stack([h.flip(1), h.roll(1, 1)], 1),
    "attention": lambda h: F.scaled_dot_product_attention(h, h, h),
    "written in place": lambda h: torch.zeros(N, 7, 3).index_copy(1, torch.arange(1, 6), h),
    "written by a slice": lambda h: _written(h),
    "norms": lambda h: h / h.norm(dim=2, keepdim=True),
    "logarithms": lambda h: h.logsumexp(1),
    "logarithms of all sums": lambda h: h.logcumsumexp(1),
    "unfolded": lambda h: h.unfold(1, 2, 1),
    "differences": lambda h: h.diff(dim=1),
    "products": lambda h: h.transpose(1, 2) @ h,
    "distances": lambda h: torch.cdist(h, h + 1.0),
    "largest distances": lambda h: torch.cdist(h, h.detach() + 1.0, p=torch.inf),
    "an image at places": lambda h: F.grid_sample(h[:, None], torch.rand(N, 4, 4, 2), align_corners=False),
    "einsum": lambda h: torch.einsum("ntd,nsd->nts", h, h.tanh()),
    "spectra over time": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * torch.randn(3, 3), n=T, dim=1),
    "all frequencies": lambda h: torch.view_as_real(torch.fft.fft(h, dim=1).conj() * (1 + 2j)).flatten(2),
    "complex products": lambda h: ((h + 1j * h.tanh()) @ torch.randn(3, 4, dtype=torch.cfloat)).imag,
    "complex sizes": lambda h: torch.complex(h, h.sin()).abs(),
    "time first and back": lambda h: h.transpose(0, 1).contiguous().view(T, N * 3).view(T, N, 3).transpose(0, 1),
}


def _written(h: Tensor) -> Tensor:
    out = torch.zeros(N, T + 2, 3)
    out[:, 1:-1] = h
    return out


MIXED: dict[str, Path] = {
    "mean over the batch": lambda h: h - h.mean(0),
    "softmax over the batch": lambda h: h.softmax(0),
    "a gate of zero": lambda h: h + 0.0 * h.mean(0),
    "a gate that holds zero": lambda h: h + torch.zeros(3) * h.sum(0),
    "a mask that shuts all out": lambda h: h + (h.sum(0) * torch.zeros(3, dtype=torch.bool)),
    "a relu that is shut": lambda h: h + (h.sum(0) - 1e9).relu(),
    "reversed": lambda h: h + h.flip(0),
    "picked by data": lambda h: h[INDEX],
    "sorted over the batch": lambda h: h.sort(0)[0],
    "maximum over the batch": lambda h: h - h.amax(0),
    "attention over the batch": lambda h: F.scaled_dot_product_attention(*[h.transpose(0, 1)] * 3).transpose(0, 1),
    "index put": lambda h: torch.zeros(N, T, 3).index_put((INDEX,), h),
    "taken": lambda h: h.take(torch.arange(N * T * 3)).view(N, T, 3),
    "scattered": lambda h: torch.zeros(N, T, 3).scatter(0, INDEX[:, None, None].expand(N, T, 3), h),
    "masked": lambda h: h[torch.ones(N, T, dtype=torch.bool)].view(N, T, 3),
    "convolution over the batch": lambda h: F.conv1d(h.permute(1, 2, 0), torch.ones(3, 3, 3), padding=1).permute(
        2, 0, 1
    ),
    "groups of two": lambda h: h + h.view(2, 2, T, 3).mean(1, keepdim=True).expand(2, 2, T, 3).reshape(N, T, 3),
    "spectra over the batch": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=0) * 2, n=N, dim=0),
    "complex products over the batch": lambda h: (
        torch.einsum("ntd,nm->mtd", torch.complex(h, h.sin()), torch.randn(N, N, dtype=torch.cfloat)).real
    ),
    "parts exchanged": lambda h: torch.view_as_real(torch.complex(h, h.flip(0))).flatten(2),
    "cumulative sum over the batch": lambda h: h.cumsum(0),
    "logarithms over the batch": lambda h: h.logcumsumexp(0),
}


@pytest.mark.parametrize("name", [*KEPT_APART, *MIXED])
def test_operations(name: str) -> None:
    """Between two layers: the first one's rows stay apart, or are seen to be mixed, whatever the data hides today."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    losses = squares({**KEPT_APART, **MIXED}[name](layer(torch.randn(N, T, 3))))
    (own,) = check_superset(losses, layer)
    found = whole(own.reshape(N * T, -1)).reshape(N, T)
    if name in KEPT_APART:
        assert ((found == torch.arange(1, N + 1)[:, None]) | (found == 0)).all()
    else:
        assert (found == surrogates.SHARED).sum() >= N


def test_a_view_that_deals_out_other_rows() -> None:
    layer = nn.Linear(3, 3)
    losses = squares(layer(torch.randn(N, T, 3)).reshape(T, N, 3).transpose(0, 1))
    (own,) = check_superset(losses, layer)
    assert (whole(own.reshape(N * T, -1)) == torch.arange(N * T) % N + 1).all()


STILL = ("picked by data", "index put", "scattered", "masked", "taken")


@pytest.mark.parametrize("name", [*KEPT_APART, *MIXED])
def test_operations_with_their_indices_as_they_are(name: str) -> None:
    """What is mixed only since an index may be another the next time is told apart for this time."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    losses = squares({**KEPT_APART, **MIXED}[name](layer(torch.randn(N, T, 3))))
    edges = uses_of(losses, layer)[0].edges
    (own,) = track_owners(losses, edges, moving=False)
    assert own is not None
    for k, loss in enumerate(losses):
        (delta,) = torch.autograd.grad(loss, edges, retain_graph=True)
        assert ((delta == 0) | (own == k + 1) | (own == surrogates.SHARED)).all()
    found = whole(own.reshape(N * T, -1))
    assert bool((found >= 0).all()) == (name in KEPT_APART or name in STILL)


def test_what_a_program_reads_from_a_gradient_is_not_proven() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return grad.flip(0) if grad.sum() > 0 else grad

    layer = nn.Linear(3, 3)
    losses = squares(Reads.apply(layer(torch.randn(4, 3))))
    use = uses_of(losses, layer)[0]
    with pytest.raises(Unprovable):
        track_owners(losses, use.edges)
    assert prove(losses, [use]) == ["own"]


@pytest.mark.parametrize("name", ["RNN, time first, last", "sorted"])
def test_a_wrong_proof_is_contradicted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this step's gradients: what it says goes for nothing then, and the rows are measured."""
    monkeypatch.setattr(placement, "prove", lambda losses, uses: [placement.Layout.MAJOR] * len(uses))
    torch.manual_seed(1)
    model = MODELS[name]().double()
    clipper = PerSampleClipper(model, 1.0)
    for _ in range(2):
        assert error(clipper, model, model(model.batch(4))) < 1e-11


def test_the_comparison_fails_without_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts kept for any graph; data that is taken for constant; values that are not replaced."""

    def worst(name: str) -> float:
        torch.manual_seed(1)
        model = MODELS[name]()
        clipper = PerSampleClipper(model, 1.0)
        return max(error(clipper, model, model(model.batch(n))) for n in (4, 4, 4, 4))

    assert worst("sorted") < 1e-5
    monkeypatch.setattr(
        placement.Placement, "_confirmed", lambda self, losses, uses, verdicts: verdicts
    )  # which finds most of it
    with monkeypatch.context() as patch:
        patch.setattr(surrogates, "blur", lambda x, dims: x)
        patch.setattr(surrogates, "_zero_index", lambda index: index)
        assert worst("sorted") > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(placement, "prove", lambda losses, uses: [placement.Layout.MAJOR] * len(uses))
        assert worst("RNN, time first, last") > 1e-3
        assert worst("sorted") > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(placement.Probe, "owners", lambda self, losses, uses, deltas, under=None: [
            torch.arange(use.rows) * 4 // use.rows + 1 for use in uses])  # fmt: skip
        assert worst("experts") > 1e-3
