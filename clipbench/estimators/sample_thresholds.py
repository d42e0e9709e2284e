"""Per-sample thresholds that follow the norms of past samples: beyond both papers, which have either half."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipbench.config.checks import at_least, fraction, positive, require


class SampleEma:
    """PS-Clip (arXiv 2605.02701) with the EMA rule of arXiv 2605.11838: one τ for the samples of a micro-batch.

        m_t = c m_{t−1} + (1 − c) mean_k ‖g_k‖        τ_{t+1} = m_t / (1 − cᵗ)

    Infinite before the first micro-batch. Norms that are not finite are left out of the mean. Called as
    (k, norms) → τ, all (n,). Raises ValueError unless coefficient is in [0, 1).
    """

    def __init__(self, coefficient: float = 0.9) -> None:
        fraction("coefficient", coefficient)
        self.coefficient = coefficient
        self.mean = torch.zeros((), dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.int64)

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        mean, count = self.mean.to(norms.device), self.count.to(norms.device)
        weight = 1.0 - torch.pow(self.coefficient, count.to(torch.float64))
        tau = torch.where(count > 0, mean / weight.clamp_min(torch.finfo(torch.float64).tiny), math.inf)
        finite = norms.isfinite()
        batch = torch.where(finite, norms, 0.0).double().sum() / finite.sum().clamp_min(1)
        seen = finite.any()
        self.mean = torch.where(seen, torch.lerp(batch, mean, self.coefficient), mean)
        self.count = count + seen
        return tau.to(norms.dtype).expand(norms.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = state["mean"].clone(), state["count"].clone()


class SampleQuantile:
    """PS-Clip (arXiv 2605.02701) with the sliding window of arXiv 2605.11838: τ = q-quantile of past samples' norms.

    The lower order statistic of the last `window` samples' norms, those of past micro-batches only; infinite before
    the first. Norms that are not finite count as infinite. Called as (k, norms) → τ, all (n,). Raises ValueError where
    quantile is outside [0, 1] or window below 1.
    """

    def __init__(self, quantile: float = 0.85, window: int = 1280) -> None:
        require(0 <= quantile <= 1, "quantile", "in [0, 1]", quantile)
        at_least("window", window, 1)
        self.quantile, self.window = quantile, window
        self.history = torch.empty(0)  # the oldest first

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        past = self.history.to(norms.device, norms.dtype)
        if len(past):
            place = math.floor(self.quantile * (len(past) - 1))
            tau = past.kthvalue(place + 1).values
        else:
            tau = norms.new_full((), math.inf)
        self.history = torch.cat([past, torch.nan_to_num(norms.detach(), nan=math.inf, posinf=math.inf)])[
            -self.window :
        ]
        return tau.expand(norms.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"].clone()


class SampleShare:
    """Adaptive clipping by the share that is clipped (Andrew et al. 2021, arXiv 1905.03871): C follows a quantile.

        C ← C exp(−η (b − q)),   b the share of samples with ‖g_k‖ ≤ C

    so that C tends to the q-quantile of the norms. Called as (k, norms) → τ, all (n,); C is moved once a call, after it
    was used. start: C at first; quantile: q; rate: η. Norms that are not finite count as above C. Raises ValueError
    where an option is out of range.
    """

    def __init__(self, quantile: float = 0.5, rate: float = 0.2, start: float = 1.0) -> None:
        require(0 < quantile < 1, "quantile", "in (0, 1)", quantile)
        positive("rate", rate)
        positive("start", start)
        self.quantile, self.rate = quantile, rate
        self.logarithm = torch.tensor(math.log(start), dtype=torch.float64)

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        logarithm = self.logarithm.to(norms.device)
        tau = logarithm.exp().to(norms.dtype)
        below = (norms <= tau).double().mean()
        self.logarithm = logarithm - self.rate * (below - self.quantile)
        return tau.expand(norms.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"logarithm": self.logarithm.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.logarithm = state["logarithm"].clone()
