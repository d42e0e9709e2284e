"""Learning-rate sensitivity from the tuning trials: how good is a method when the learning rate is not the
best one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipbench.analysis.groups import method_order
from clipbench.analysis.load import Experiment, final
from clipbench.analysis.tables import NONE, Table, number

Floats = npt.NDArray[np.float64]
TOLERANCE = 1.1


class Trials(NamedTuple):
    """The tuning trials of one method: learning rates, final validation losses (inf: diverged), and how many
    diverged."""

    method: str
    lr: Floats
    loss: Floats
    diverged: int
    failed: int

    def envelope(self) -> tuple[Floats, Floats]:
        """The best trial in each of ⌈n/2⌉ parts (4 to 12) of the range, equally wide in log lr: (learning
        rates, losses).

        Trials also differ in the method's own options; the best of neighbours is what tuning those would
        find.
        """
        good = np.isfinite(self.loss) & (self.lr > 0)
        lr, loss = self.lr[good], self.loss[good]
        if len(lr) == 0 or np.ptp(np.log(lr)) == 0:
            best = np.argsort(loss)[:1]
            return lr[best], loss[best]
        parts = min(12, max(4, math.ceil(len(self.lr) / 2)))
        place = (np.log(lr) - np.log(lr).min()) / np.ptp(np.log(lr))
        index = np.minimum((place * parts).astype(int), parts - 1)
        best = np.array([np.flatnonzero(index == i)[loss[index == i].argmin()] for i in np.unique(index)])
        return lr[best], loss[best]


class Sensitivity(NamedTuple):
    """All methods' trials of one experiment."""

    experiment: str
    methods: list[Trials]


def sensitivity(experiment: Experiment) -> Sensitivity | None:
    """The trials of an experiment (role "tune"), None where it was not tuned. Unfinished trials are left
    out."""
    runs = experiment.runs[(experiment.runs["role"] == "tune") & (experiment.runs["status"] != "running")]
    methods = []
    for method in sorted(runs["method"].unique(), key=method_order):
        own = runs[runs["method"] == method].sort_values(["lr", "run_id"])
        failed = int((own["status"] == "failed").sum())
        own = own[own["status"] != "failed"]
        loss = final(own, "validation_loss").where(own["status"] == "ok").to_numpy(float)
        loss = np.where(np.isfinite(loss), loss, math.inf)
        methods.append(Trials(method, own["lr"].to_numpy(float), loss, int(np.isinf(loss).sum()), failed))
    return Sensitivity(experiment.name, methods) if methods else None


def sensitivity_table(data: Sensitivity) -> Table:
    """Per method: best trial, its learning rate, the trials and the range of rates close to the best, the
    median trial."""
    percent = round(100 * (TOLERANCE - 1))
    columns = [
        "method",
        "trials",
        "diverged",
        "best loss",
        "at lr",
        f"lr within {percent} % of best",
        f"share within {percent} %",
        "median loss",
    ]
    rows = []
    for trials in data.methods:
        n, best = len(trials.lr), float(trials.loss.min(initial=math.inf))
        if not math.isfinite(best):
            rows.append([trials.method, str(n), str(trials.diverged), *[NONE] * 5])
            continue
        close = trials.loss <= best + (TOLERANCE - 1) * abs(best)
        span = f"{trials.lr[close].min():.2g} – {trials.lr[close].max():.2g}"
        factor = f" (×{trials.lr[close].max() / trials.lr[close].min():.3g})"
        rows.append([
            trials.method, str(n), str(trials.diverged), number(best),
            f"{trials.lr[trials.loss.argmin()]:.3g}",
            span + factor, f"{100 * close.mean():.0f} %", number(float(np.median(trials.loss))),
        ])  # fmt: skip
    notes = [
        "Final validation loss of the tuning trials; each method is measured against its own best trial.",
        "The median is over all trials, a diverged one being infinitely bad (∞: half of them diverged).",
    ]
    failed = sum(t.failed for t in data.methods)
    notes += [f"{failed} failed trials are left out."] if failed else []
    return Table(f"{data.experiment}: learning-rate sensitivity", columns, rows, notes)


def expected_best(losses: pd.Series | Floats, trials: int) -> float:
    """E[min of `trials` losses drawn with replacement] = Σ_i l_(i) [((n−i+1)/n)^m − ((n−i)/n)^m], l_(1) ≤ … ≤
    l_(n).

    What tuning with a budget of m trials is worth on average; inf where diverged trials can be all there is.
    Dodge et al. (2019), arXiv:1909.03004.
    """
    ordered = np.sort(np.asarray(losses, dtype=np.float64))
    n = len(ordered)
    if n == 0 or trials < 1:
        raise ValueError(f"trials must be >= 1 and losses not empty, got {trials} and {n} losses")
    left = (n - np.arange(n + 1)) / n
    weights = left[:-1] ** trials - left[1:] ** trials
    used = weights > 0
    return float((ordered[used] * weights[used]).sum())
