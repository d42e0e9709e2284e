"""Products clipped through their factors, against a float64 SVD of the formed matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipbench.spectral import hard_factored, soft_factored


def products(rows: int, heavy: float) -> tuple[Tensor, Tensor]:
    """Eight products, one row of the factors `heavy` times the others, two rows of the first product equal."""
    generator = torch.Generator().manual_seed(rows)
    a = torch.randn(8, rows, 20, generator=generator)
    delta = torch.randn(8, rows, 30, generator=generator)
    delta[:, -1] *= heavy
    a[0, 1], delta[0, 1] = a[0, 0], delta[0, 0]
    delta[1, 2] = 0
    return a, delta


def by_svd(a: Tensor, delta: Tensor, rule: str, level: float) -> tuple[Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(a.double().mT @ delta.double(), full_matrices=False)
    changed = s.clamp_max(level) if rule == "hard" else s / torch.sqrt(1 + (s / level) ** 2)
    return u @ (changed[..., None] * vt), s[:, 0]


@pytest.mark.parametrize("rule", ["hard", "soft"])
@pytest.mark.parametrize("heavy", [1.0, 1e3])
@pytest.mark.parametrize("level", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_product_is_clipped(rule: str, heavy: float, level: float, dtype: torch.dtype, allowed: float) -> None:
    a, delta = (factor.to(dtype) for factor in products(9, heavy))
    kernel = hard_factored if rule == "hard" else soft_factored
    changed, sigma = kernel(a, delta, torch.full((8,), level, dtype=torch.float64))
    truth, largest = by_svd(a, delta, rule, level)
    torch.testing.assert_close(sigma, largest, rtol=1e-6, atol=0)
    # δ' is rounded to its dtype: what that leaves is relative to the factors, which may cancel in their product.
    rounding = 30 * torch.finfo(dtype).eps * changed.abs().amax()
    size = torch.linalg.matrix_norm(truth) + torch.linalg.matrix_norm(a) * rounding
    error = torch.linalg.matrix_norm(a.double().mT @ changed.double() - truth)
    lost = 32 * torch.finfo(torch.float64).eps * (largest.max() / level).square()  # squares have half the digits
    assert bool((error <= (allowed + lost) * size).all()), error / size


def test_an_infinite_level_changes_nothing() -> None:
    a, delta = products(5, 1.0)
    infinite = torch.full((8,), torch.inf)
    assert torch.equal(hard_factored(a, delta, infinite)[0], delta)
    torch.testing.assert_close(soft_factored(a, delta, infinite)[0], delta)
