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
from clipbench.runs.equal import representative
from clipbench.runs.identity import counted, effective
from clipbench.wording import amount

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
    """What is compared in one table and one figure: one dataset, one model, data of one sum, one precision, and
    settings that were all tuned or all not."""

    title: str
    slug: str
    experiment: Experiment
    variants: list[Variant]
    notes: list[str]


def columns_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as columns to compare: nested mappings as dotted keys, lists as their JSON text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= columns_of(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _setting(run: Mapping[Any, Any]) -> dict[str, Any]:
    kind = run["device"].get("type")
    return columns_of(counted(effective(run["config"], str(kind)), "variant")) | {"device": kind}


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
    trained = [not (config.get("study") or {}).get("_target_") for config in runs["config"]]
    runs = runs[pd.Series(trained, index=runs.index, dtype=bool)]  # a study's rows are read by the claims
    pairs = list(zip(runs["dataset"].map(str), runs["model"].map(str), strict=True))
    places = pd.Series(pairs, index=runs.index, dtype=object)
    result = []
    for data, net in sorted(set(places)):
        if (dataset and data != dataset) or (model and net != model):
            continue
        chosen = runs[places == (data, net)]
        one = len(set(places)) == 1 and experiment.name != "single"
        base = stem(experiment.name)
        slug = base if one else f"{base}__{data}__{net}"
        title = experiment.name if one else f"{experiment.name}: {net} on {data}"
        for words, part in comparable(chosen):
            shown = variants(part)
            again = len(part) - sum(len(variant.runs) for variant in shown)
            twice = [f"{amount(again, 'run')} with another's setting and seed left out."] if again else []
            name = "".join(f"__{word}" for word in words).replace(" ", "_")
            about = f"{title} ({', '.join(words)})" if words else title
            result.append(Panel(about, slug + name, experiment, shown, [*notes, *twice, *pooled(part)]))
    return result


def comparable(runs: pd.DataFrame) -> list[tuple[list[str], pd.DataFrame]]:
    """The runs in parts that may stand in one table, each with the words that tell it from the others.

    Never mixed are data of different sums, precisions, and tuned with untuned settings.
    """
    tuned = [run.get("tuned") for run in runs.to_dict("records")]
    facts = pd.DataFrame(
        {
            "data": [data.get("sum") or "" for data in runs["data"]],
            "precision": [str(p) for p in runs["precision"]] if "precision" in runs else "",
            "settings": ["" if t is None or t != t else "tuned" if t else "not tuned" for t in tuned],
        },
        index=runs.index,
    )
    varying = [column for column in facts if facts[column].nunique() > 1]
    if not varying:
        return [([], runs)]
    parts = []
    for key, part in facts.groupby(varying):
        named = zip(varying, map(str, key), strict=True)
        values = [f"data {value[:8]}" if name == "data" else value for name, value in named]
        parts.append(([value for value in values if value], runs.loc[part.index]))
    return parts


def pooled(runs: pd.DataFrame) -> list[str]:
    """Notes on what differs among runs that are compared all the same: code, library versions, machines.

    The fingerprint is of what a run reaches, so code is compared within a method and optimizer only, and codes that
    were shown to give the same numbers count as one.
    """
    torch = sorted({str(versions.get("torch")) for versions in runs["versions"]})
    machines = sorted(
        {f"{d.get('name') or d.get('type')}, {amount(d.get('threads'), 'thread')}" for d in runs["device"]}
    )
    found = [
        f"Runs of different {what} are compared here: {'; '.join(values)}."
        for what, values in (("PyTorch", torch), ("machines", machines))
        if len(values) > 1
    ]
    for (method, optimizer), part in runs.groupby(["method", "optimizer"]):
        code = set() if "fingerprint" not in part else {representative(str(code)) for code in part["fingerprint"]}
        batched = part["together_fingerprint"].dropna() if "together_fingerprint" in part else []
        count = max(len(code), len({representative(str(program)) for program in batched}))
        if count > 1:
            found.append(f"The runs of {method} with {optimizer} were made by {count} versions of its code.")
    return found


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
