"""The exact backend's own machinery: which path is taken, what the certificate proves, what happens when it fails."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from clipbench.spectral.certificate import nothing_missed
from clipbench.spectral.exact import clip_one_
from clipbench.spectral.gram import gram
from clipbench.spectral.report import LEFT, LinAlgError, Outcome
from clipbench.spectral.subspace import Goal, Leading, leading
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, power_law, with_spectrum

exact = importlib.import_module("clipbench.spectral.exact")


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

    for name in ("_few", "_full", "_double", "clip_by_svd"):
        watch(name)
    return seen


def test_few_values_above_take_the_certified_iteration_alone(calls: list[str]) -> None:
    assert clip_one_(with_spectrum(flat(128), 128, 300), 1.3).count_above == 3
    assert calls == ["_few"]


def test_many_values_above_take_the_eigendecomposition(calls: list[str]) -> None:
    assert clip_one_(noise(128, 300), 15.0).count_above > 64
    assert calls == ["_few", "_full"]


def test_a_large_ratio_is_clipped_in_float64(calls: list[str]) -> None:
    assert clip_one_(with_spectrum(power_law(128), 128, 300), 1e-3).count_above == 128
    assert calls == ["_double", "_few", "_full"]


def test_beyond_the_stated_bound_the_svd_answers_and_is_counted(calls: list[str]) -> None:
    matrix = with_spectrum(np.geomspace(1.0, 1e-7, 100), 100, 200)
    expected = reference.clip(matrix.numpy(), 1e-6)
    outcome = clip_one_(matrix, 1e-6)
    assert calls[-1] == "clip_by_svd"
    assert outcome.fell_back
    assert error(matrix, expected) <= 1e-5


@pytest.mark.parametrize("broken", ["eigh", "cholesky_ex"])
def test_a_factorisation_that_does_not_converge_falls_back(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LinAlgError("did not converge")

    matrix = with_spectrum(flat(128), 128, 300)
    expected = reference.clip(matrix.numpy(), 1.3)
    monkeypatch.setattr(torch.linalg, broken, fail)
    outcome = clip_one_(matrix, 1.3)
    assert outcome.fell_back
    assert error(matrix, expected) <= 1e-6


def test_a_matrix_that_no_factorisation_takes_is_left_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    matrix = with_spectrum(flat(128), 128, 300)
    before = matrix.clone()
    outcome = clip_one_(matrix, 1.3)
    assert (outcome.left, outcome.fell_back, math.isnan(outcome.sigma_max)) == (True, True, True)
    assert torch.equal(matrix, before)
    assert LEFT.left


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
    matrix = with_spectrum(flat(128), 128, 300)
    expected = reference.clip(matrix.numpy(), 4.0)
    assert clip_one_(matrix, 4.0).count_above == 2
    assert error(matrix, expected) <= 1e-5


@pytest.mark.usefixtures("overlooked")
def test_without_the_certificate_the_same_mistake_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    matrix = with_spectrum(flat(128), 128, 300)
    expected = reference.clip(matrix.numpy(), 4.0)
    monkeypatch.setattr(exact, "nothing_missed", lambda *_: True)
    clip_one_(matrix, 4.0)
    assert error(matrix, expected) > 0.1


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


def test_blocked_gram_matrices() -> None:
    for shape in ((500, 700), (97, 97), (193, 300)):
        matrix = noise(*shape).double()
        assert torch.allclose(gram(matrix), matrix @ matrix.mT, rtol=1e-12, atol=1e-10)


def test_outcomes_default_to_nothing_done() -> None:
    assert Outcome(1.0) == (1.0, 0, False, False)
