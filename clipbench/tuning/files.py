"""Generated settings: conf/tuned/<experiment>/<method>.yaml, which Hydra composes over the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipbench.errors import RecordError
from clipbench.runs.files import atomic_text
from clipbench.tuning.plan import Plan
from clipbench.tuning.study import Choice


def write(plan: Plan, method: str, choice: Choice) -> Path:
    """Write the settings of the selected trial; nothing is written where the file says the same already."""
    path = plan.tuned / f"{method}.yaml"
    text = render(plan, method, choice)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"paths.tuned must be a writable folder, got {plan.tuned} ({error.strerror})") from error
    atomic_text(path, text)
    return path


def render(plan: Plan, method: str, choice: Choice) -> str:
    """The file's text: where the values come from, and the values."""
    tuning, counts = plan.options.tuning, choice.counts
    bad = ", ".join(f"{counts[kind]} {kind}" for kind in ("diverged", "failed", "pruned") if counts[kind])
    length = f"{plan.options.steps} steps" if plan.options.steps else f"{plan.options.epochs:g} epochs"
    lines = [
        "# @package _global_",
        f"# Written by clipbench.tune for experiment={plan.experiment} method={method}; tuned=none switches it off.",
        f"# Trial {choice.slot} of {sum(counts.values())} ({bad or 'none diverged'}), {length} each; "
        f"its {tuning.metric} is {choice.value:.6g}.",
        f"# Protocol {tuning.protocol}, sampler {tuning.sampler}, pruner {tuning.pruner}, seed {tuning.seed}; "
        f"{choice.ended}.",
    ]
    shared = [word for word in plan.overrides if not word.startswith(("experiment=", "tuning.", "paths."))]
    lines += [f"# With {' '.join(shared)}."] if shared else []
    return "\n".join(lines) + "\n\n" + yaml.safe_dump(nested(choice.settings), sort_keys=False)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    found: dict[str, Any] = {}
    for path, value in settings.items():
        *above, last = path.split(".")
        node = found
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return found
