"""The comparison as tables: final metrics with intervals, what diverged, step time, differences to the
baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipbench.analysis import stats
from clipbench.analysis.bounded import metric_interval
from clipbench.analysis.groups import BASELINE, Panel, Variant, baseline_of
from clipbench.analysis.load import final
from clipbench.analysis.shares import clipped_shares, dropped_share
from clipbench.analysis.targets import Target, find_target, to_target
from clipbench.analysis.timing import StepTimes, step_times

PREFERRED = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss", "train_loss")
NONE = "–"


class Table(NamedTuple):
    """A table of finished texts; the first column names the row. Notes stand below, one line each."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """GitHub's pipe table under a title, with the notes below; columns of numbers are right-aligned."""
        columns = zip(*self.rows, strict=True) if self.rows else [[""]] * len(self.columns)
        rule = ["---", *["---:" if _numeric(cells) else "---" for cells in columns][1:]]
        grid = [[text.replace("|", "\\|") for text in row] for row in [self.columns, rule, *self.rows]]
        lines = ["| " + " | ".join(row) + " |" for row in grid]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def text(self) -> str:
        """Aligned columns for a terminal."""
        grid = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        body = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in grid]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, body[0], rule, *body[1:], *(f"  {note}" for note in self.notes)])


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a column's cells begin as numbers do, or say that there is none."""
    return all(cell[:1] in "0123456789+−->∞–" for cell in cells)


def is_accuracy(metric: str) -> bool:
    """Whether `metric` is a share of 1, higher is better; everything else is a loss or an error, lower is
    better."""
    return metric.endswith("accuracy")


def final_metrics(panel: Panel) -> list[str]:
    """The final metrics the panel's runs have: accuracies and losses, or where there are none all but
    timings."""
    names = {name for v in panel.variants for values in v.runs["final"] for name in values}
    preferred = [n for n in PREFERRED if n in names]
    others = sorted(n for n in names if not n.endswith(("_seconds", "_per_second")))
    return preferred or others


def number(value: float, spread: float = math.nan, signed: bool = False) -> str:
    """`value` with the decimals its `spread` (half the width of its interval) warrants: two digits of the
    spread."""
    if not math.isfinite(value):
        return NONE if math.isnan(value) else ("∞" if value > 0 else "−∞")
    scale = spread if math.isfinite(spread) and spread > 0 else abs(value) / 100
    size = max(abs(value), scale)
    sign = "+" if signed else ""
    if size != 0 and not 1e-4 <= size < 1e6:
        return f"{value:{sign}.2e}".replace("-", "−") if signed else f"{value:.2e}"
    decimals = 0 if scale == 0 else min(max(1 - math.floor(math.log10(scale)), 0), 6)
    return f"{value:{sign}.{decimals}f}".replace("-", "−")


def estimate(interval: stats.Interval, metric: str, signed: bool = False, count: bool = True) -> str:
    """ "25.8 % [25.1, 26.5] (n = 5)" for an accuracy, "1.234 [1.201, 1.267] (n = 5)" otherwise; "–" without
    values."""
    if interval.n == 0:
        return NONE
    factor, unit = (100.0, " points" if signed else " %") if is_accuracy(metric) else (1.0, "")
    value, low, high = (factor * x for x in interval[:3])
    half = (high - low) / 2
    if is_accuracy(metric):
        decimals = 1 if not half < 0.05 or half == 0 else 2
        shown = [f"{x:{'+' if signed else ''}.{decimals}f}".replace("-", "−") for x in (value, low, high)]
    else:
        shown = [number(x, half, signed) for x in (value, low, high)]
    bounds = f" [{shown[1]}, {shown[2]}]" if math.isfinite(half) else ""
    return f"{shown[0]}{unit}{bounds}" + (f" (n = {interval.n})" if count else "")


def ended(variant: Variant) -> dict[str, int]:
    """How many of the variant's runs ended ok, diverged, failed, or are unfinished."""
    counts = variant.runs["status"].value_counts()
    known = {status: int(counts.get(status, 0)) for status in ("ok", "diverged", "failed")}
    return known | {"unfinished": len(variant.runs) - sum(known.values())}


def lost(variant: Variant, metric: str) -> int:
    """Runs that count as the worst outcome in `metric`: diverged ones, and those that ended ok without a finite value
    where others of the variant's experiment have one."""
    ok = variant.runs[variant.runs["status"] == "ok"]
    return ended(variant)["diverged"] + sum(1 for value in final(ok, metric) if not math.isfinite(value))


def by_seed(variant: Variant, metric: str) -> dict[int, float]:
    """Seed → final metric of the runs that ended ok with a finite one."""
    ok = variant.runs[variant.runs["status"] == "ok"]
    values = final(ok, metric)
    return {int(s): float(v) for s, v in zip(ok["seed"], values, strict=True) if math.isfinite(v)}


def final_table(panel: Panel, times: StepTimes, metrics: Sequence[str] | None = None) -> Table:
    """Per variant: final metrics (mean, 95 % interval, n), how the runs ended, step time as a ratio to the
    baseline."""
    names = list(metrics) if metrics is not None else final_metrics(panel)
    columns = [
        "method",
        *(n.replace("_", " ") for n in names),
        "clipped",
        "ok / diverged / failed",
        f"step time ({times.source})",
    ]
    rows = []
    for variant in panel.variants:
        cells = [_final_cell(variant, n) for n in names]
        ends = ended(variant)
        status = " / ".join(str(ends[key]) for key in ("ok", "diverged", "failed"))
        status += f" ({ends['unfinished']} unfinished)" if ends["unfinished"] else ""
        rows.append([variant.label, *cells, share_text(panel, variant), status, times.ratio_text(variant)])
    notes = [
        "Mean [95 % interval] over the seeds that ended ok; diverged runs are counted beside, not averaged.",
        "Clipped: share of what the method clips (samples, steps, or layers of a step), mean over training; "
        "dropped: share of samples left out because their gradient was not finite.",
    ]
    return Table(f"{panel.title}: final metrics", columns, rows, [*notes, *times.notes, *panel.notes])


def _final_cell(variant: Variant, metric: str) -> str:
    """Mean and interval of a final metric, and how many ok runs have no finite one."""
    values = by_seed(variant, metric)
    text = estimate(metric_interval(list(values.values()), metric), metric)
    missing = lost(variant, metric) - ended(variant)["diverged"]
    return f"{text}, {missing} not finite" if missing else text


def share_text(panel: Panel, variant: Variant) -> str:
    """ "17 %", with the dropped share where samples were dropped; "–" where nothing of it was recorded."""
    shares = clipped_shares(panel.experiment, variant.runs).values()
    parts = [f"{100 * sum(shares) / len(shares):.3g} %"] if shares else []
    dropped = dropped_share(panel.experiment, variant.runs)
    if dropped > 0:
        parts.append(f"{100 * dropped:.2g} % dropped")
    return ", ".join(parts) or NONE


def difference_table(panel: Panel, times: StepTimes, baseline: str = BASELINE, target: float | None = None) -> Table:
    """Per variant: paired difference to the baseline in the main metric, probability of improvement, verdict,
    and steps and seconds to the target."""
    metric = next(iter(final_metrics(panel)), "")
    goal = find_target(panel, target)
    columns = ["method", f"{metric.replace('_', ' ')} − {baseline}'s", "P(better)", "verdict"]
    columns += ["steps to target", f"seconds to target ({times.source})"] if goal else []
    rows = []
    for variant in panel.variants:
        against = _against(variant, baseline_of(variant, panel, baseline), metric)
        reach = [to_target(variant, panel, goal, times, axis) for axis in ("step", "seconds")] if goal else []
        rows.append([variant.label, *against, *(_reach_text(times_) for times_ in reach)])
    notes = [
        f"Difference: mean over the seeds of both [95 % interval] (n pairs); {_direction(metric)}.",
        "P(better): chance that one run of the method beats one of the baseline; diverged runs lose.",
        f"Verdict: whether the interval excludes zero; none below {stats.VERDICT_FROM} pairs. "
        "The intervals are not corrected for the number of methods.",
    ]
    return Table(f"{panel.title}: against {baseline}", columns, rows, notes + (_target_notes(goal) if goal else []))


def _direction(metric: str) -> str:
    return "above zero is better" if is_accuracy(metric) else "below zero is better"


def _target_notes(goal: Target) -> list[str]:
    value = f"{100 * goal.value:.1f} %" if is_accuracy(goal.metric) else number(goal.value)
    return [
        f"Target: validation {goal.metric} {value} ({goal.origin}), first evaluation that meets it: "
        "Kaplan–Meier median (runs that reach it / runs); a run that never does is censored at the end."
    ]


def _against(variant: Variant, base: Variant | None, metric: str) -> list[str]:
    """The cells difference, P(better) and verdict."""
    if base is None or base.label == variant.label:
        return [NONE, NONE, "baseline" if base is not None else NONE]
    higher = is_accuracy(metric)
    difference = stats.paired_difference(by_seed(variant, metric), by_seed(base, metric))
    worst = -math.inf if higher else math.inf
    losses = [lost(v, metric) for v in (variant, base)]
    scores = [list(by_seed(v, metric).values()) + [worst] * n for v, n in zip((variant, base), losses, strict=True)]
    better = stats.probability_of_improvement(scores[0], scores[1], higher)
    word, why = stats.verdict(difference, higher, *losses)
    chance = f"{better.estimate:.2f} [{better.low:.2f}, {better.high:.2f}]" if min(map(len, scores)) else NONE
    return [estimate(difference, metric, signed=True), chance, f"{word} ({why})" if why else word]


def _reach_text(times: stats.Times | None) -> str:
    if times is None or times.n == 0:
        return NONE
    if math.isinf(times.median):
        return f"> {_amount(times.horizon)} ({times.reached}/{times.n})"
    return f"{_amount(times.median)} ({times.reached}/{times.n})"


def _amount(value: float) -> str:
    """Steps or seconds: three digits, and whole numbers from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def panel_tables(
    panel: Panel,
    results: Path,
    baseline: str = BASELINE,
    target: float | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Table]:
    """The two tables of a panel."""
    times = step_times(panel, results, baseline)
    return [final_table(panel, times, metrics), difference_table(panel, times, baseline, target)]
