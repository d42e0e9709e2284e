"""The exact backend's own machinery: which path is taken, what the certificate proves, what happens when it fails."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from clipbench.spectral import clip_singular_values
from clipbench.spectral.certificate import nothing_missed, nothing_missed_by_trace
from clipbench.spectral.exact import clip_one_
from clipbench.spectral.gram import few_times, gram
from clipbench.spectral.krylov import Krylov, dominant
from clipbench.spectral.report import LEFT, LinAlgError, MatrixReport
from clipbench.spectral.ritz import Goal, Leading, by_gram
from clipbench.spectral.subspace import checked, converged, corrected, leading, polished
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, power_law, with_spectrum

exact = importlib.import_module("clipbench.spectral.exact")
krylov = importlib.import_module("clipbench.spectral.krylov")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the paths that `clip_one_` takes, in order."""
    seen: list[str] = []

    def watch(name: str) -> None:
        inner = getattr(exact, name)

        def watched(*arguments: object, **options: object) -> object:
            seen.append(name)
            return inner(*arguments, **options)

        monkeypatch.setattr(exact, name, watched)

    for name in ("_near", "_few", "_full", "_double", "clip_by_svd"):
        watch(name)
    return seen


@pytest.mark.parametrize("tau", [25.0, 40.0, math.inf])
def test_a_threshold_near_the_norm_needs_no_gram_matrix(tau: float, calls: list[str]) -> None:
    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), tau)
    report = clip_one_(matrix, tau)
    assert calls == ["_near"]
    assert report.count_above == int(tau < 30)
    assert report.sigma_max == pytest.approx(30.0, rel=1e-5)
    assert error(matrix, expected) <= 1e-6


def test_where_few_rows_do_not_hold_the_norm_the_gram_matrix_answers(calls: list[str]) -> None:
    matrix = with_spectrum(np.linspace(3.0, 1.0, 192), 192, 400)
    expected = reference.clip(matrix.numpy(), 2.99)
    tau = float(np.linalg.norm(matrix.numpy())) / 3.9
    assert clip_one_(matrix.clone(), tau).count_above == 0
    assert calls[:2] == ["_near", "_few"]
    clip_one_(matrix, 2.99)
    assert error(matrix, expected) <= 1e-5


def test_few_values_above_take_the_certified_iteration_alone(calls: list[str]) -> None:
    assert clip_one_(with_spectrum(flat(192), 192, 400), 1.3).count_above == 3
    assert calls == ["_near", "_few"]


def test_many_values_above_take_the_eigendecomposition(calls: list[str]) -> None:
    assert clip_one_(noise(192, 400), 15.0).count_above > 96
    assert calls == ["_near", "_few", "_full"]


def test_a_large_ratio_is_clipped_in_float64(calls: list[str]) -> None:
    assert clip_one_(with_spectrum(power_law(192), 192, 400), 1e-3).count_above == 192
    assert calls == ["_double", "_few", "_full"]


def test_beyond_the_stated_bound_the_svd_answers_and_is_counted(calls: list[str]) -> None:
    matrix = with_spectrum(np.geomspace(1.0, 1e-7, 100), 100, 200)
    expected = reference.clip(matrix.numpy(), 1e-6)
    report = clip_one_(matrix, 1e-6)
    assert calls[-1] == "clip_by_svd"
    assert report.fell_back
    assert error(matrix, expected) <= 1e-5


@pytest.mark.parametrize("broken", ["eigh", "cholesky_ex"])
def test_a_factorisation_that_does_not_converge_falls_back(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LinAlgError("did not converge")

    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), 1.3)
    monkeypatch.setattr(torch.linalg, broken, fail)
    report = clip_one_(matrix, 1.3)
    assert report.fell_back
    assert error(matrix, expected) <= 1e-6


def test_a_matrix_that_no_factorisation_takes_is_left_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    matrix = with_spectrum(flat(192), 192, 400)
    before = matrix.clone()
    report = clip_one_(matrix, 1.3)
    assert (report.left, report.fell_back, math.isnan(report.sigma_max)) == (True, True, True)
    assert torch.equal(matrix, before)
    assert LEFT.left


@pytest.mark.parametrize("tau", [4.0, math.inf])
def test_what_is_clipped_in_a_copy_is_written_back_where_something_changed(tau: float) -> None:
    """As from an accelerator, so from a narrower dtype."""
    matrix = with_spectrum(flat(192), 192, 400).bfloat16()
    promoted, before = matrix.float(), matrix.clone()
    report = clip_one_(matrix, tau)
    assert clip_one_(promoted, tau) == report
    assert torch.equal(matrix, promoted.bfloat16())
    assert torch.equal(matrix, before) == (tau == math.inf)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["exact", "svd", "randomized", "newton_schulz"])
def test_every_backend_clips_on_an_accelerator(backend: str) -> None:
    matrix = with_spectrum(power_law(192), 192, 400).cuda()
    clipped, sigma_max = clip_singular_values(matrix, 0.3, backend)
    assert error(clipped.cpu(), reference.clip(matrix.cpu().numpy(), 0.3)) <= 1e-3
    assert float(sigma_max) == pytest.approx(1.0, rel=1e-2)


def test_the_certificate_sees_one_value_that_was_missed() -> None:
    matrix = with_spectrum(flat(128), 128, 300)
    product = gram(matrix)
    found = leading(matrix, product, Goal(1.3, 40.0, 6e-6), limit=21)
    assert found is not None
    total = float(torch.linalg.vector_norm(product))
    assert nothing_missed(product, total, found, 1.3**2)
    blind = Leading(found.values[:2], found.residuals[:2], found.basis[:2], 2)
    assert not nothing_missed(product, total, blind, 1.3**2)
    assert not nothing_missed(product, total, found, 0.9**2)


def test_the_certificate_by_the_trace_sees_one_value_that_was_missed() -> None:
    matrix = with_spectrum(flat(128), 128, 300)
    norm = float(torch.linalg.vector_norm(matrix))
    found = dominant(matrix, Goal(25.0, norm, 6e-6))
    assert found is not None
    assert nothing_missed_by_trace(norm, found, 25.0**2)
    blind = Leading(found.values[1:], found.residuals[1:], found.basis[1:], 0)
    assert not nothing_missed_by_trace(norm, blind, 25.0**2)
    # What the twelve rows leave is about 8² in the trace: that shows nothing of a threshold below.
    above_bulk = found._replace(above=3)
    assert nothing_missed_by_trace(norm, above_bulk, 9.0**2)
    assert not nothing_missed_by_trace(norm, above_bulk, 2.0**2)


@pytest.fixture
def overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the block iteration overlooks the largest value."""
    inner = exact.leading

    def blind(*arguments: object, **options: object) -> Leading | None:
        found = inner(*arguments, **options)
        if found is None:
            return None
        return Leading(found.values[1:], found.residuals[1:], found.basis[1:], found.above - 1)

    monkeypatch.setattr(exact, "leading", blind)


@pytest.mark.usefixtures("overlooked")
def test_a_wrong_iteration_is_caught_and_answered_by_the_eigendecomposition() -> None:
    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), 4.0)
    assert clip_one_(matrix, 4.0).count_above == 2
    assert error(matrix, expected) <= 1e-5


@pytest.mark.usefixtures("overlooked")
def test_without_the_certificate_the_same_mistake_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), 4.0)
    monkeypatch.setattr(exact, "nothing_missed", lambda *_: True)
    clip_one_(matrix, 4.0)
    assert error(matrix, expected) > 0.1


def test_near_the_norm_a_wrong_iteration_is_caught_by_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Krylov.ritz

    def blind(space: Krylov, above: float) -> tuple[Leading, torch.Tensor, torch.Tensor]:
        found, image, rotation = inner(space, above)
        less = Leading(found.values[1:], found.residuals[1:], found.basis[1:], found.above - 1)
        return less, image[1:], rotation[1:]

    monkeypatch.setattr(Krylov, "ritz", blind)
    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), 12.0)
    for looks in (krylov.HOPELESS, (math.inf,)):
        monkeypatch.setattr(krylov, "HOPELESS", looks)
        kept = matrix.clone()
        assert clip_one_(kept, 12.0).count_above == 1
        assert error(kept, expected) <= 1e-5
    monkeypatch.setattr(krylov, "nothing_missed_by_trace", lambda *_: True)
    clip_one_(matrix, 12.0)
    assert error(matrix, expected) > 0.1


def test_for_small_layers_the_first_block_alone_is_certified_too(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = krylov.by_matrix

    def blind(*arguments: object) -> tuple[Leading, torch.Tensor]:
        found, image = inner(*arguments)
        return Leading(found.values[1:], found.residuals[1:], found.basis[1:], found.above - 1), image[1:]

    monkeypatch.setattr(krylov, "by_matrix", blind)
    matrix = with_spectrum(np.array([5.0, 2.0] + [1e-5] * 126), 128, 300)
    expected, kept = reference.clip(matrix.numpy(), 1.0), matrix.clone()
    assert clip_one_(kept, 1.0).count_above == 2
    assert error(kept, expected) <= 1e-5
    monkeypatch.setattr(krylov, "nothing_missed_by_trace", lambda *_: True)
    clip_one_(matrix, 1.0)
    assert error(matrix, expected) > 0.1


def test_a_step_of_first_order_that_does_not_suffice_is_told() -> None:
    matrix = with_spectrum(power_law(128), 128, 300)
    product = gram(matrix)
    goal = Goal(0.3, float(torch.linalg.vector_norm(matrix)), 8e-6)
    rough = torch.linalg.qr((torch.eye(128)[:12] @ product).mT).Q.mT
    found, image = by_gram(product, rough, goal.above)
    assert not polished(matrix, (product,), found, image, goal)[2]


def test_where_nothing_is_above_tau_close_values_ask_for_more_of_the_largest() -> None:
    goal = Goal(2.0, 3.0, 8e-6)
    alone = Leading([1.0, 0.1], [2e-3, 0.0], torch.eye(2), 0)
    assert converged(alone, goal)
    assert not converged(alone._replace(values=[1.0, 0.9]), goal)


def test_a_vector_that_is_not_quite_of_length_one_is_mended() -> None:
    matrix = with_spectrum(np.array([30.0] + [0.1] * 15), 16, 40)
    left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    u = (left[:, :1].mT * (1 + 1e-5)).float()
    work = matrix.clone()
    exact.take_off_(work, u, u @ matrix, 1.0)
    assert error(work, ((left * sigma.clamp_max(1.0)) @ right).numpy()) <= 1e-5


def test_a_basis_that_is_not_orthonormal_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: blocks that are not made orthogonal to those before count the same value twice."""
    matrix = with_spectrum(flat(192), 192, 400)
    norm = float(torch.linalg.vector_norm(matrix))
    goal = Goal(25.0, norm, 8e-6)
    assert dominant(matrix, goal) is not None
    space = Krylov(matrix)
    space.expand()
    assert space.orthonormal()
    space.basis = torch.cat([space.basis[:-6], space.basis[:6]])
    assert not space.orthonormal()
    monkeypatch.setattr(Krylov, "orthonormal", lambda _: False)
    assert dominant(matrix, goal) is None


def test_what_one_block_explains_is_a_lower_bound_and_sharp_for_low_rank() -> None:
    for sigma, least in ((power_law(128), 0.5), (np.array([5.0, 1.0, 0.3] + [0.0] * 125), 0.999)):
        matrix = with_spectrum(sigma, 128, 300)
        total = float(torch.linalg.vector_norm(matrix.double())) ** 2
        assert least * total < Krylov(matrix).explained() <= total * (1 + 1e-5)


def test_matrices_of_low_rank_need_no_gram_matrix_at_any_ratio(calls: list[str]) -> None:
    matrix = with_spectrum(np.array([30.0, 2.0, 0.5] + [1e-4] * 189), 192, 400)
    expected = reference.clip(matrix.numpy(), 1.0)
    assert clip_one_(matrix, 1.0).count_above == 2
    assert error(matrix, expected) <= 1e-5
    assert calls == ["_near"]


def test_rows_that_are_zero_or_alike_start_a_space_too() -> None:
    """Dead channels: three rows that are not zero, fewer than a block has; and a matrix of equal rows."""
    matrix = torch.zeros(128, 300)
    matrix[[5, 50, 120]] = with_spectrum(np.array([3.0, 2.0, 1.0]), 3, 300)
    equal = torch.ones(128, 300)
    for each, tau in ((matrix, 1.5), (equal, 100.0)):
        kept = each.clone()
        clip_one_(kept, tau)
        assert error(kept, reference.clip(each.numpy(), tau)) <= 1e-5


def test_what_rounding_may_leave_along_values_just_below_tau_is_bounded() -> None:
    """Of two pairs, one above τ = 1: converged, unless rounding in A or the coupling to the other exceeds the bound."""
    found = Leading([100.0, 0.99], [0.0, 0.0], torch.eye(2), 1)
    goal = Goal(1.0, 10.1, 8e-6, total=100.005)
    assert converged(found, goal)
    steep = Leading([1e4, 1.1, 0.9], [0.0] * 3, torch.eye(3), 2)
    assert not converged(steep, goal._replace(norm=100.01)), "rounding in A: eps/4 σ_max² against τ"
    seen = found._replace(right=torch.eye(2))
    assert converged(seen, goal)
    assert not converged(seen._replace(coupling=1.01 * goal.overshoot), goal)


def test_the_residual_bounds_the_true_error() -> None:
    """‖C − C*‖_F ≤ (Σ ‖r‖²)^{1/2}, here for a subspace that is far from converged."""
    matrix = with_spectrum(power_law(100), 100, 200).double()
    product, tau = gram(matrix), 0.15
    rough = torch.linalg.qr(product @ torch.randn(100, 12, generator=torch.Generator().manual_seed(0)).double()).Q.mT
    values, rotation = torch.linalg.eigh(rough @ product @ rough.mT)
    basis = rotation.flip(1).mT @ rough
    listed = values.flip(0).tolist()
    residuals = torch.linalg.vector_norm(basis @ product - values.flip(0)[:, None] * basis, dim=1)
    found = Leading(listed, residuals.tolist(), basis, sum(value > tau**2 for value in listed))
    left = basis[: found.above]
    right = left @ matrix
    clipped = matrix - left.mT @ (right * (1 - tau / torch.linalg.vector_norm(right, dim=1, keepdim=True)))
    gap = np.linalg.norm(clipped.numpy() - reference.clip(matrix.numpy(), tau))
    assert 1e-4 < gap <= found.error() * (1 + 1e-9)


def test_a_step_of_first_order_takes_out_what_rounding_in_the_gram_matrix_left() -> None:
    """Eighteen values above τ at σ_max/τ = 30, where eps (σ_max/τ)² is beyond the tolerance."""
    sigma = np.concatenate([np.geomspace(1, 1 / 28, 18), np.geomspace(1 / 32, 1 / 300, 238)])
    matrix = with_spectrum(sigma, 256, 600)
    product, tau = gram(matrix), 1 / 30
    goal = Goal(tau, float(torch.linalg.vector_norm(matrix)), 6e-6)
    rough = torch.linalg.eigh(product).eigenvectors.flip(1)[:, :40].mT.contiguous()
    found, image = by_gram(product, rough, goal.above)
    found, image = checked(matrix, found, image, goal.above)
    better = corrected((product,), found, image)
    left = better.basis[: better.above]

    def gap(basis: torch.Tensor) -> float:
        right = basis.double() @ matrix.double()
        norms = torch.linalg.vector_norm(right, dim=1, keepdim=True)
        clipped = matrix.double() - basis.double().mT @ (right * (1 - tau / norms))
        return error(clipped, reference.clip(matrix.numpy(), tau))

    assert found.above == better.above == 18
    assert gap(left) < 0.5 * gap(found.basis[:18])


def test_products_of_one_row_round_no_worse_than_those_of_many() -> None:
    """Positive sums over 3071 rows, as gradients have them: a matrix-vector product is off by 8e-7 on some CPUs."""
    draws = torch.Generator().manual_seed(0)
    row, matrix = torch.rand(1, 3071, generator=draws), torch.rand(3071, 767, generator=draws)
    found = few_times(row, matrix)
    assert found.shape == (1, 767)
    assert error(found, (row.double() @ matrix.double()).numpy()) <= 3e-7


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e12, 1e18])
def test_a_scale_beyond_float32_powers_needs_no_svd(scale: float) -> None:
    matrix = with_spectrum(power_law(192) * scale, 192, 400)
    assert clip_one_(matrix, scale / 9.5)[1:] == (9, False, False)


def test_blocked_gram_matrices() -> None:
    for shape in ((500, 700), (97, 97), (193, 300)):
        matrix = noise(*shape).double()
        assert torch.allclose(gram(matrix), matrix @ matrix.mT, rtol=1e-12, atol=1e-10)


def test_outcomes_default_to_nothing_done() -> None:
    assert MatrixReport(1.0) == (1.0, 0, False, False)
