"""Tuned settings: files that clipbench.tune writes, and where a run takes them from.

They hold for what was tuned and for nothing else: a file keeps the config that its trials shared, and its settings are
applied where the run's config is that one in everything but the settings themselves. A run either has all of them or
none; which, its record says in `tuned`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipbench.config import schema
from clipbench.config.environment import SIGN, referring
from clipbench.errors import ConfigError
from clipbench.runs.identity import counted, effective

NONE = "none"


def folders(config: Mapping[str, Any], conf: Path, checkout: bool) -> list[Path]:
    """Where tuned settings lie, the first being where they are written: paths.tuned, else conf/tuned_settings of a
    checkout (a folder called as the option is would make it a Hydra group).

    What is tuned with an installed package, or into a results folder that is not the checkout's own, lies beside the
    results; the other place is only read.
    """
    if config["paths"]["tuned"]:
        return [Path(config["paths"]["tuned"]).expanduser()]
    results = Path(config["paths"]["results"]).expanduser()
    own, beside = conf / "tuned_settings", results / "tuned"
    return [own, beside] if checkout and results.resolve() == (conf.parent / "results").resolve() else [beside, own]


def base(config: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """What a tuning of the options `settings` holds fixed, flattened; not the seed, nor what changes no result.

    Raises ConfigError for a config that cannot run.
    """
    plain = schema.canonical(schema.used(config), schema.check(config))
    kept = referring(counted(effective(plain, "cuda"), "variant"), config.get("environment", {}))
    return {path: value for path, value in flatten(kept).items() if path not in settings}


def flatten(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def nested(settings: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`, laid over a copy of `into`."""
    found: dict[str, Any] = copy.deepcopy(into) if into is not None else {}
    for path, value in settings.items():
        *above, last = path.split(".")
        node = found
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return found


def apply(
    config: dict[str, Any], given: Sequence[str], places: Sequence[Path], say: Callable[[str], None]
) -> dict[str, Any]:
    """The config with the tuned settings of its experiment and method, where there are any that hold for it.

    `given` are the options of the command line: who gives one that was tuned gets none of the others. What is done,
    and what is not and why, goes to `say`. Raises ConfigError for a file that cannot be read.
    """
    plain = config | {"tuned": NONE}
    if config.get("tuned", NONE) == NONE or "method" not in config:
        return plain
    if config["tuned"] != "auto":
        raise ConfigError(f"tuned must be auto or none, got {config['tuned']}")
    name = f"{config['experiment']}/{config['method'].get('name')}"
    path = next((place / f"{name}.yaml" for place in places if (place / f"{name}.yaml").is_file()), None)
    if path is None:
        return plain
    content = read(path)
    if content["is_baseline"]:
        say(f"tuned: {name} clipped nothing that helps, its best setting is its baseline's; run that instead")
        return plain
    settings = flatten(content["settings"])
    why = _unfit(plain, settings, given, content["base"])
    if why:
        say(f"tuned settings of {name} left out: {why}")
        return plain
    shown = ", ".join(f"{option}={value:g}" for option, value in settings.items())
    say(f"tuned settings of {name}: {shown} ({content['mark']}; tuned=none switches them off)")
    return nested(settings, plain) | {"tuned": content["mark"]}


def _unfit(
    config: Mapping[str, Any], settings: Mapping[str, Any], given: Sequence[str], kept: Mapping[str, Any]
) -> str:
    """Why tuned settings do not hold for a config; empty where they do."""
    named = {word.lstrip("+~").partition("=")[0] for word in given}
    if taken := sorted(named & set(settings)):
        return f"{taken[0]} is given"
    now = base(config, list(settings))
    for option in dict.fromkeys([*kept, *now]):
        before, here = kept.get(option), now.get(option)
        if SIGN in repr(before) + repr(here):
            return f"{option} is of the environment, whose values are not kept to compare"
        if json.dumps(before, default=str) != json.dumps(here, default=str):
            return f"{option} is {here}, tuned was {before}"
    return ""


def read(path: Path) -> dict[str, Any]:
    """A file's content: mark, is_baseline, settings, base. Raises ConfigError, naming the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); tuned=none goes without it") from error
    kinds = {"mark": str, "is_baseline": bool, "settings": dict, "base": dict}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ConfigError(
                f"{path} must hold {', '.join(kinds)}, as clipbench.tune writes it; tuned=none goes without"
            )
    return dict(content)
