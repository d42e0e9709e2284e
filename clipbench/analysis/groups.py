"""Which runs belong together: panels (one dataset, one model), and in a panel variants (runs that differ by
seed only).

Two runs of one method whose configurations differ in anything but the seed are never averaged: they become
two variants, and the labels say in what they differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from clipbench.analysis.load import Experiment
from clipbench.runs.archive import stem
from clipbench.runs.identity import counted, effective

BASELINE = "sgd"
ORDER = ("sgd", "norm_clip", "value_clip", "ps_clip", "ps_clip_constant", "micro_batch_clip", "spectral")


class Variant(NamedTuple):
    """Runs that differ by their seed only. `setting` is their configuration, flattened to "optimizer.lr" →
    value."""

    label: str
    method: str
    optimizer: str
    setting: dict[str, Any]
    runs: pd.DataFrame


class Panel(NamedTuple):
    """What is compared in one table and one figure: one dataset, one model."""

    title: str
    slug: str
    experiment: Experiment
    variants: list[Variant]
    notes: list[str]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists as their JSON text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _setting(run: Mapping[Any, Any]) -> dict[str, Any]:
    kind = run["device"].get("type")
    return flatten(counted(effective(run["config"], str(kind)), "variant")) | {"device": kind}


def method_order(method: str) -> tuple[int, str]:
    """Sort key: the methods of `ORDER` first, in that order and with those whose names start alike; then the
    others."""
    ranks = [i for i, known in enumerate(ORDER) if method == known or method.startswith(f"{known}_")]
    return (max(ranks) if ranks else len(ORDER), method)


def compared_role(runs: pd.DataFrame) -> tuple[str, list[str]]:
    """The role shown in comparisons, "final" where there is one and else "single", and a note on what is not
    shown."""
    counts = runs["role"].value_counts()
    role = "final" if counts.get("final", 0) else "single"
    other = int(counts.get("single", 0)) if role == "final" else 0
    notes = [f"{other} single runs are not shown beside the final runs of the tuning."] if other else []
    return role, notes


def panels(experiment: Experiment, dataset: str | None = None, model: str | None = None) -> list[Panel]:
    """The panels of an experiment's final (or else single) runs, never of its tuning runs; sorted by
    title."""
    role, notes = compared_role(experiment.runs)
    runs = experiment.runs[experiment.runs["role"] == role]
    pairs = sorted({(str(d), str(m)) for d, m in zip(runs["dataset"], runs["model"], strict=True)})
    result = []
    for data, net in pairs:
        if (dataset and data != dataset) or (model and net != model):
            continue
        chosen = runs[(runs["dataset"] == data) & (runs["model"] == net)]
        one = len(pairs) == 1 and experiment.name != "single"
        base = stem(experiment.name)
        slug = base if one else f"{base}__{data}__{net}"
        title = experiment.name if one else f"{experiment.name}: {net} on {data}"
        shown = variants(chosen)
        again = len(chosen) - sum(len(variant.runs) for variant in shown)
        twice = [f"{again} runs that differ from another by eval_every alone are not counted."] if again else []
        result.append(Panel(title, slug, experiment, shown, notes + twice))
    return result


def variants(runs: pd.DataFrame) -> list[Variant]:
    """The variants among `runs`, labelled by method; with the optimizer where several are there, and with the
    options that differ where one method (and optimizer) was run with several settings."""
    groups: dict[tuple[str, str], dict[str, list[Any]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for index, run in zip(runs.index, runs.to_dict("records"), strict=True):
        setting = _setting(run)
        key = json.dumps(setting, sort_keys=True, default=str)
        settings[key] = setting
        groups.setdefault((str(run["method"]), str(run["optimizer"])), {}).setdefault(key, []).append(index)
    several = len({optimizer for _, optimizer in groups}) > 1
    result = []
    for (method, optimizer), members in sorted(
        groups.items(), key=lambda item: (*method_order(item[0][0]), item[0][1])
    ):
        differing = differing_keys(settings[key] for key in members)
        for key in sorted(members, key=lambda k: _sort_key(settings[k], differing)):
            label = method + (f" with {optimizer}" if several else "") + _suffix(settings[key], differing)
            own = _once(runs.loc[members[key]])
            result.append(Variant(label, method, optimizer, settings[key], own))
    return result


def _once(runs: pd.DataFrame) -> pd.DataFrame:
    """One run a seed, sorted by seed: of runs that differ by their evaluations alone, the one with most of them."""
    every = [config.get("eval_every") for config in runs["config"]]
    width = [value if isinstance(value, int) else float("inf") for value in every]
    order = runs.assign(_every=width).sort_values(["seed", "_every"], kind="stable")
    return order.drop_duplicates("seed").drop(columns="_every")


def _sort_key(setting: Mapping[str, Any], keys: Iterable[str]) -> tuple[tuple[bool, float, str], ...]:
    values = [setting.get(key) for key in keys]
    return tuple(
        (not isinstance(v, int | float), float(v) if isinstance(v, int | float) else 0.0, str(v)) for v in values
    )


def differing_keys(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which the settings differ, in the order of their first appearance."""
    known = list(settings)
    keys = dict.fromkeys(key for setting in known for key in setting)
    return [key for key in keys if len({json.dumps(s.get(key), default=str) for s in known}) > 1]


def _suffix(setting: Mapping[str, Any], keys: list[str]) -> str:
    """ ", lr=0.1, threshold.alpha=5": what follows the group's name, and of the method the last two parts."""
    names = [".".join(key.removeprefix("optimizer.").removeprefix("method.").split(".")[-2:]) for key in keys]
    parts = [f"{name}={setting.get(key)}" for name, key in zip(names, keys, strict=True)]
    shown = parts if len(parts) <= 3 else [*parts[:3], "…"]
    return "".join(f", {part}" for part in shown)


def baseline_of(variant: Variant, panel: Panel, baseline: str = BASELINE) -> Variant | None:
    """The variant of method `baseline` with the same optimizer; of several, the one most like it in
    everything but the method (then the one with more runs). None where there is none."""

    def distance(other: Variant) -> tuple[int, int, str]:
        keys = differing_keys([variant.setting, other.setting])
        return sum(not key.startswith("method.") for key in keys), -len(other.runs), other.label

    candidates = [v for v in panel.variants if v.method == baseline and v.optimizer == variant.optimizer]
    return min(candidates, key=distance, default=None)
