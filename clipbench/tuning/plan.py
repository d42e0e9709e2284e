"""What a tuning will do, from its command line: experiment, methods, their spaces and the config of every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from clipbench.cli.compose import CONFIG_PATH, compose, compose_node, resolve
from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.runs.request import request
from clipbench.tuning.space import Space, space

RESERVED = {
    "method": "methods=… says which are tuned",
    "seed": "tuning.seed and tuning.final_seeds are the seeds",
    "role": "it is tune for trials and final for the winners",
    "trial": "it is the number of the trial",
    "tuned": "trials and winners set their own values",
}


@dataclass(frozen=True)
class Plan:
    """The parts of a tuning; `overrides` are the Hydra overrides that all of its runs share."""

    experiment: str
    options: schema.Options
    overrides: tuple[str, ...]
    spaces: dict[str, Space]
    trials: dict[str, int]
    keys: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of the command line or of the experiment."""
        return list(self.spaces)

    @property
    def results(self) -> Path:
        return Path(self.options.paths.results)

    @property
    def folder(self) -> Path:
        """Where studies and locks are kept."""
        return self.results / "tune"

    @property
    def tuned(self) -> Path:
        """The folder of generated settings of this experiment."""
        return Path(self.options.paths.tuned or f"{CONFIG_PATH}/tuned") / self.experiment

    def settings(self, method: str, params: Mapping[str, float]) -> dict[str, Any]:
        """Every option that a trial sets: the fixed ones and those in `params`."""
        found = self.spaces[method]
        return {f.path: f.value for f in found.fixed} | {r.path: params[r.path] for r in found.ranges}

    def config(self, method: str, settings: Mapping[str, Any], **marks: Any) -> dict[str, Any]:
        """The config of one run; `marks` are role, trial and seed."""
        words = [f"{key}={'null' if value is None else value}" for key, value in marks.items()]
        values = [
            f"{path}={value!r}" if isinstance(value, float) else f"{path}={value}" for path, value in settings.items()
        ]
        return compose([*self.overrides, f"method={method}", "tuned=none", *words, *values])


def plan(overrides: Sequence[str]) -> Plan:
    """The plan for a command line without its own words (see `arguments.py`). Raises ConfigError for bad input."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.key_or_group in RESERVED:
            raise ConfigError(f"{override.key_or_group} is set by clipbench.tune ({RESERVED[override.key_or_group]})")
    node = compose_node(overrides)
    config = resolve(node, node.hydra.runtime.choices)
    options = schema.check(config)
    if options.experiment == "single":
        raise ConfigError("experiment must be given, as experiment=heavy_tailed_mlp/smoke")
    tuning = options.tuning
    if tuning.seed in tuning.final_seeds:
        raise ConfigError(f"tuning.final_seeds must not hold tuning.seed, got {tuning.seed} in both")
    if len(set(tuning.final_seeds)) < len(tuning.final_seeds):
        raise ConfigError(f"tuning.final_seeds must differ from each other, got {tuning.final_seeds}")
    explicit = any(override.key_or_group == "tuning.trials" for override in parsed)
    spaces, trials, keys = {}, {}, {}
    for method in tuning.methods or swept_methods(node):
        own = compose([*overrides, f"method={method}", "tuned=none", "role=tune", f"seed={tuning.seed}"])
        schema.check(own)
        spaces[method] = space(own, tuning.protocol)
        trials[method] = tuning.trials if explicit else _trials(own, method)
        keys[method] = _key(own, spaces[method])
        for override in parsed:
            if override.key_or_group in spaces[method].paths():
                raise ConfigError(f"{override.key_or_group} is tuned for {method}, got a value for it too")
    return Plan(options.experiment, options, tuple(overrides), spaces, trials, keys)


def swept_methods(node: DictConfig) -> list[str]:
    """The methods of the experiment's own sweep, or the config's one method where there is no sweep."""
    swept = (node.hydra.sweeper.get("params") or {}).get("method")
    if swept is None:
        return [str(node.hydra.runtime.choices["method"])]
    parsed = OverridesParser.create().parse_override(f"method={swept}")
    values = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
    return [str(value) for value in values]


def _trials(config: Mapping[str, Any], method: str) -> int:
    """The budget of a method: the same for all, or what the paper spent on it."""
    tuning = config["tuning"]
    if tuning["protocol"] == "ours":
        return int(tuning["trials"])
    if method not in tuning["paper"]["trials"]:
        stated = ", ".join(sorted(tuning["paper"]["trials"])) or "none"
        raise ConfigError(
            f"tuning.paper.trials must state those of {method} (methods it states: {stated}; or give trials=N)"
        )
    return int(tuning["paper"]["trials"][method])


def _key(config: Mapping[str, Any], found: Space) -> str:
    """Tells studies apart whose trials are not the same: by base config, space, sampler, selection and code."""
    tuning = config["tuning"]
    ways = [tuning[name] for name in ("metric", "sampler", "pruner", "seed")]
    wanted = request(config)
    text = json.dumps([wanted.run_id, found, ways, wanted.fingerprint])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
