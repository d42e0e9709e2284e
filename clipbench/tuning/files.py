"""What a tuning leaves for others: settings that runs take (see clipbench.config.tuned), its plan and its outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipbench.config.tuned import base, nested
from clipbench.errors import Unwritable
from clipbench.runs.archive import read_mapping, selection_file
from clipbench.runs.files import atomic_text
from clipbench.tuning.plan import BASELINE, Plan
from clipbench.tuning.reference import MeasuredRanges
from clipbench.tuning.sequence import point
from clipbench.tuning.study import Choice
from clipbench.wording import amount


def write(plan: Plan, method: str, choice: Choice) -> Path:
    """Write the settings of the selected trial; nothing is written where the file says the same already."""
    return _write(plan.tuned / f"{method}.yaml", render(plan, method, choice), "paths.tuned")


def _write(path: Path, text: str, option: str) -> Path:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"{option} must be a writable folder, got {path.parent} ({error.strerror})") from error
    atomic_text(path, text)
    return path


def mark(plan: Plan, choice: Choice) -> str:
    """What a record's `tuned` says: which trial of how many, by which protocol and metric."""
    tuning = plan.options.tuning
    return f"trial {choice.trial} of {sum(choice.counts.values())} ({tuning.protocol}, {tuning.metric})"


def is_baseline(method: str, choice: Choice) -> bool:
    """Whether the method's winner is its baseline."""
    return method != BASELINE and choice.method == BASELINE


def render(plan: Plan, method: str, choice: Choice) -> str:
    """The file's text: where the values come from, the values, and the config that they were tuned with."""
    tuning, counts, settings = plan.options.tuning, choice.counts, choice.settings
    bad = ", ".join(f"{counts[kind]} {kind}" for kind in ("diverged", "failed", "pruned") if counts[kind])
    length = amount(plan.options.steps, "step") if plan.options.steps else f"{plan.options.epochs:g} epochs"
    share = "unknown" if choice.share is None else f"{100 * choice.share:.3g} %"
    lines = [
        f"# Written by clipbench.tune for experiment={plan.experiment} method={method}; tuned=none switches it off.",
        f"# Trial {choice.trial} of {sum(counts.values())} ({bad or 'none diverged'}), {length} each; "
        f"its {tuning.metric} is {choice.value:.6g}, its share clipped {share}.",
        f"# Protocol {tuning.protocol}, sampler {tuning.sampler}, pruner {tuning.pruner}, seed {tuning.seed}; "
        f"{choice.ended}.",
    ]
    if is_baseline(method, choice):
        lines.append(
            f"# It is its baseline, {BASELINE}: these are that one's settings, and no run takes them from here."
        )
    config = plan.config(choice.method if method not in plan.like else method, settings)
    content = {
        "mark": mark(plan, choice), "is_baseline": is_baseline(method, choice),
        "settings": nested(settings), "base": base(config, list(settings)),
    }  # fmt: skip
    return "\n".join(lines) + "\n\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write_plan(plan: Plan, measured: Mapping[str, MeasuredRanges]) -> Path:
    """<results>/tune/<experiment>/plan.yaml: trials, rates, spaces, and how the thresholds' ranges were found."""
    tuning = plan.options.tuning
    methods: dict[str, Any] = {}
    for method in plan.methods:
        found = measured.get(method)
        methods[method] = {
            "trials": plan.trials[method], "of_them_the_baselines": plan.baseline_trials(method),
            "space": {
                r.path: {"low": r.low, "high": r.high, "log": r.log} for r in plan.spaces[method].ranges
            } | {f.path: f.value for f in plan.spaces[method].fixed},
        }  # fmt: skip
        if found is not None:
            methods[method]["measured"] = {
                "clips": "98 … 2 %", "values": dict(found.values),
                "steps": found.steps, "settings": dict(found.settings),
            }  # fmt: skip
    most = max(plan.trials.values())
    content = {
        "experiment": plan.experiment, "protocol": tuning.protocol, "metric": tuning.metric, "sampler": tuning.sampler,
        "seed": tuning.seed, "final_seeds": list(tuning.final_seeds),
        "positions": [round(point(index, 1)[0], 6) for index in range(most)] if tuning.sampler == "sobol" else None,
        "methods": methods,
    }  # fmt: skip
    text = "# The plan of clipbench.tune; positions are the trials' places in the first range of every method.\n"
    return _write(
        plan.folder / plan.experiment / "plan.yaml",
        text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
        "paths.results",
    )


def write_selection(plan: Plan, choices: Mapping[str, Choice], runs: Mapping[str, Sequence[str]]) -> Path:
    """results/data/<experiment>__tuning.json: what was selected for every method, and the ids of its final runs.

    Methods of an earlier tuning of the experiment that this one leaves out stay.
    """
    path = selection_file(plan.results, plan.experiment)
    earlier = read_mapping(path) if path.exists() else {}
    now = {
        method: {
            "trials": sum(choice.counts.values()), "counts": choice.counts, "protocol": plan.options.tuning.protocol,
            "metric": plan.options.tuning.metric, "trial": choice.trial, "value": choice.value,
            "share_clipped": choice.share, "is_baseline": is_baseline(method, choice), "settings": choice.settings,
            "final_runs": sorted(runs.get(method, ())),
        }
        for method, choice in choices.items()
    }  # fmt: skip
    return _write(path, json.dumps(dict(sorted((earlier | now).items())), indent=1) + "\n", "paths.results")
