"""Spectral, per-sample or plain? The papers' rules against each other, wherever the same experiment ran both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipbench.analysis.groups import Panel, Variant
from clipbench.analysis.stats import Interval, paired_difference, verdict
from clipbench.analysis.tables import NONE, Table, by_seed, estimate, final_metrics, is_accuracy, lost
from clipbench.analysis.timing import StepTimes, step_times
from clipbench.wording import amount

# The question behind each: does it beat the plain rule, which of both papers', the spectrum or only being layer-wise?
PAIRS = (
    ("ps_clip", "norm_clip"),
    ("spectral_clip", "norm_clip"),
    ("spectral_clip", "ps_clip"),
    ("spectral_clip", "per_tensor_norm"),
)


class Duel(NamedTuple):
    """Two rules in one panel, under one optimizer: the paired difference of a final metric, the rule's less the
    other's, and both their prices a step."""

    panel: str
    tuned: bool
    rule: str
    against: str
    metric: str
    difference: Interval
    word: str
    costs: tuple[str, str]


def duels(panel: Panel, results: Path) -> list[Duel]:
    """Every pair of `PAIRS` of which a panel has both, once for each optimizer; none where a rule has several settings.

    A rule that tuning found to be its baseline takes part with the runs it has, if any.
    """
    metric = next(iter(final_metrics(panel)), None)
    if metric is None:
        return []
    times = step_times(panel, results)
    found = []
    for optimizer in sorted({variant.optimizer for variant in panel.variants}):
        for first, second in PAIRS:
            one, other = (_only(panel, name, optimizer) for name in (first, second))
            if one is not None and other is not None:
                found.append(_duel(panel, one, other, metric, times))
    return found


def _only(panel: Panel, method: str, optimizer: str) -> Variant | None:
    own = [variant for variant in panel.variants if (variant.method, variant.optimizer) == (method, optimizer)]
    return own[0] if len(own) == 1 else None


def _duel(panel: Panel, one: Variant, other: Variant, metric: str, times: StepTimes) -> Duel:
    difference = paired_difference(by_seed(one, metric), by_seed(other, metric))
    word, why = verdict(difference, is_accuracy(metric), lost(one, metric), lost(other, metric))
    first, second = (times.ratio_text(variant) if times.calibrated else NONE for variant in (one, other))
    said = f"{word} ({why})" if why else word
    tuned = all(variant.runs["role"].eq("final").all() for variant in (one, other))
    return Duel(panel.title, tuned, one.method, other.method, metric, difference, said, (first, second))


def duel_section(found: Sequence[Duel]) -> str:
    """In Markdown: what the runs say of each pair, and the table behind it; empty where no experiment has a pair."""
    if not found:
        return ""
    sentences = []
    for first, second in dict.fromkeys((f.rule, f.against) for f in found):
        own = [f for f in found if (f.rule, f.against) == (first, second)]
        counts = {word: sum(f.word == word for f in own) for word in ("better", "worse")}
        rest = len(own) - sum(counts.values())
        said = [f"{word} in {count}" for word, count in counts.items() if count] + ([f"open in {rest}"] if rest else [])
        sentences.append(f"- `{first}` against `{second}`: {', '.join(said)} of {amount(len(own), 'comparison')}.")
    return "\n".join(["### Spectral, per-sample or plain?", "", *sentences, "", *_table(found).splitlines()[2:], ""])


def _table(found: Sequence[Duel]) -> str:
    """Who is better, by how much, and at which price a step."""
    columns = [
        "experiment",
        "settings",
        "rule",
        "against",
        "metric",
        "difference",
        "verdict",
        "step time",
        "the other's",
    ]
    rows = []
    for f in found:
        difference = estimate(f.difference, f.metric, signed=True)
        settings = "tuned" if f.tuned else "as given"
        metric = f.metric.replace("_", " ")
        rows.append([f.panel, settings, f.rule, f.against, metric, difference, f.word, *f.costs])
    notes = [
        "Pairs of the same seed; settings tuned for the experiment, or as its configuration gives them; 95 % "
        "intervals, not corrected for their number.",
        f"Step: calibrated time, as a ratio to no clipping's; {NONE} where it was not measured side by side.",
    ]
    return Table("", columns, rows, notes).markdown()
