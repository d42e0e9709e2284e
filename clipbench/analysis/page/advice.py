"""What should I use? A table over all compared experiments, with what each lets one say and what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipbench.analysis.groups import BASELINE, Panel, Variant, baseline_of
from clipbench.analysis.shares import clipped_shares
from clipbench.analysis.stats import Interval, paired_difference, verdict
from clipbench.analysis.tables import NONE, Table, by_seed, estimate, final_metrics, is_accuracy, lost
from clipbench.analysis.timing import StepTimes, step_times


class Finding(NamedTuple):
    """One method in one panel, against the same optimizer without clipping."""

    panel: str
    label: str
    metric: str
    difference: Interval
    word: str
    cost: str
    clipped: float | None


def findings(panel: Panel, results: Path) -> list[Finding]:
    """Every clipped variant of a panel, in the panel's order."""
    metric = next(iter(final_metrics(panel)), None)
    if metric is None:
        return []
    times = step_times(panel, results)
    found = []
    for variant in panel.variants:
        base = baseline_of(variant, panel, BASELINE)
        if base is not None and base.label != variant.label:
            found.append(_finding(panel, variant, base, metric, times))
    return found


def _finding(panel: Panel, variant: Variant, base: Variant, metric: str, times: StepTimes) -> Finding:
    difference = paired_difference(by_seed(variant, metric), by_seed(base, metric))
    shares = list(clipped_shares(panel.experiment, variant.runs).values())
    clipped = sum(shares) / len(shares) if shares else None
    if variant.method in panel.experiment.baselines:
        word = "is its baseline (its best trial clips nothing that helps)"
    else:
        word, why = verdict(difference, is_accuracy(metric), lost(variant, metric), lost(base, metric))
        word = f"{word} ({why})" if why else word
    cost = times.ratio_text(variant) if times.calibrated else NONE
    return Finding(panel.title, variant.label, metric, difference, word, cost, clipped)


def advice(found: Sequence[Finding]) -> str:
    """The section in Markdown: a sentence for each method, the table behind it, and what the data cannot tell."""
    if not found:
        return "No compared runs yet.\n"
    lines = [f"- {sentence}" for sentence in _sentences(found)]
    table = _table(found).markdown().split("\n\n", 1)[1]  # under this section's own heading
    return "\n".join([*lines, "", table, *_unknown()])


def _sentences(found: Sequence[Finding]) -> list[str]:
    """What the runs say of each method; methods of which they say the same share a sentence."""
    said: dict[str, list[str]] = {}
    for label in dict.fromkeys(f.label.split(",")[0] for f in found):
        own = [f for f in found if f.label.split(",")[0] == label]
        better, worse = ([f.panel for f in own if f.word == word] for word in ("better", "worse"))
        rest = len(own) - len(better) - len(worse)
        parts = []
        if better:
            parts.append(f"better than no clipping on {', '.join(better)}")
        if worse:
            parts.append(f"worse on {', '.join(worse)}")
        if rest:
            parts.append(f"not told from it in {rest} of {len(own)} comparisons")
        said.setdefault("; ".join(parts), []).append(f"`{label}`")
    return [f"{', '.join(labels)}: {text}." for text, labels in said.items()]


def _table(found: Sequence[Finding]) -> Table:
    columns = ["experiment", "method", "metric", "difference to no clipping", "verdict", "clipped", "step time"]
    rows = [
        [
            f.panel,
            f.label,
            f.metric.replace("_", " "),
            estimate(f.difference, f.metric, signed=True),
            f.word,
            NONE if f.clipped is None else f"{100 * f.clipped:.3g} %",
            f.cost,
        ]
        for f in found
    ]
    notes = [f"Step time: calibrated, as a ratio to no clipping's; {NONE} where it was not measured side by side."]
    return Table("Every method against no clipping", columns, rows, notes)


def _unknown() -> list[str]:
    return [
        "Not known from these data: how the methods compare at the papers' full sizes (every scale stands beside its "
        "table), on data and models that are not listed here, or with larger tuning budgets. An interval that contains "
        "zero says that the runs cannot tell, not that the methods are equal.",
        "",
    ]
