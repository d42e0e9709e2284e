"""What a tuning will do, from its command line: experiment, methods, their spaces and the config of every run."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from clipbench.cli.compose import CONFIG_PATH, IN_CHECKOUT, Compositions, compose_node, resolve
from clipbench.config import schema
from clipbench.config.trust import allow_typed
from clipbench.config.tuned import folders
from clipbench.errors import ConfigError
from clipbench.runs.request import request
from clipbench.tuning.space import Space, space

BASELINE = "sgd"  # the method that clips nothing, under whatever optimizer

RESERVED = {
    "method": "methods=… says which are tuned",
    "seed": "tuning.seed and tuning.final_seeds are the seeds",
    "role": "it is tune for trials and final for the winners",
    "trial": "it is the number of the trial",
    "tuned": "trials and winners set their own values",
}


@dataclass(frozen=True)
class Plan:
    """The parts of a tuning; `overrides` are the Hydra overrides that all of its runs share.

    `spaces`, `trials` and `bases` (the config that a method's trials start from) are by method, the baseline's among
    the spaces and the bases whether it is tuned or not; `like` are the methods that take another's settings.
    `compositions` keeps what Hydra composed for a method, which the configs of all its runs share.
    """

    experiment: str
    options: schema.Options
    overrides: tuple[str, ...]
    spaces: dict[str, Space]
    trials: dict[str, int]
    bases: dict[str, dict[str, Any]]
    like: dict[str, str]
    compositions: Compositions

    @property
    def methods(self) -> list[str]:
        """The methods that have trials, in the order of the command line or of the experiment."""
        return list(self.trials)

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
        return folders(self.bases[BASELINE], Path(CONFIG_PATH), IN_CHECKOUT)[0] / self.experiment

    def baseline_trials(self, method: str) -> int:
        """How many of a method's trials are its baseline's first ones: a quarter, and none by a paper's protocol.

        They are the method with an infinite threshold, which is the baseline bit for bit; their runs are found. A rule
        that acts whatever its threshold has none.
        """
        ours = self.options.tuning.protocol == "ours" and method != BASELINE
        return self.trials[method] // 4 if ours and not acts_below_threshold(self.bases[method]["method"]) else 0

    def key(self, method: str) -> str:
        """Tells studies apart whose trials are not the same: by base config, space, sampler, selection and code."""
        tuning, wanted = self.options.tuning, request(self.bases[method])
        ways = [tuning.metric, tuning.sampler, tuning.pruner, tuning.seed, tuning.protocol]
        text = json.dumps([wanted.run_id, self.spaces[method], self.spaces[BASELINE], ways, wanted.fingerprint])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def with_measured(self, ranges: Mapping[str, Mapping[str, tuple[float, float]]]) -> Plan:
        """The plan with the thresholds' ranges (method → path → low, high) in its spaces."""
        spaces = {
            method: space.with_measured(ranges[method]) if space.to_measure else space
            for method, space in self.spaces.items()
        }
        return replace(self, spaces=spaces)

    def settings(self, method: str, params: Mapping[str, float]) -> dict[str, Any]:
        """Every option that a trial sets: the fixed ones and those in `params`."""
        found = self.spaces[method]
        return {f.path: f.value for f in found.fixed} | {r.path: params[r.path] for r in found.ranges}

    def config(self, method: str, settings: Mapping[str, Any], **marks: Any) -> dict[str, Any]:
        """The config of one run; `marks` are role, trial and seed."""
        return self.compositions.config([*self.overrides, f"method={method}", "tuned=none"], {**marks, **settings})


def acts_below_threshold(node: Any) -> bool:
    """Whether a part of a method's config says of itself that it acts also where it counts nothing as clipped."""
    return _says(node, "acts_below_threshold")


def counts_below_layers(node: Any) -> bool:
    """Whether a part of a method's config says that its share clipped is of entries or units, not of whole layers."""
    return _says(node, "counts_below_layers")


def _says(node: Any, mark: str) -> bool:
    if isinstance(node, list):
        return any(_says(item, mark) for item in node)
    if not isinstance(node, Mapping):
        return False
    target = pkgutil.resolve_name(node["_target_"]) if "_target_" in node else None
    own = getattr(target, "__self__", target)  # SpectralClip.for_model: the class that it makes
    return bool(getattr(own, mark, False)) or any(_says(item, mark) for item in node.values())


def words(options: Mapping[str, Any]) -> list[str]:
    """Hydra overrides that set `options`."""

    def text(value: Any) -> str:
        if value is None:
            return "null"
        return repr(value) if isinstance(value, float) else str(value)

    return [f"{path}={text(value)}" for path, value in options.items()]


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
    wanted = tuning.methods or swept_methods(node)
    like = {method: tuning.like[method] for method in wanted if method in tuning.like}
    spaces, trials, bases, compositions = {}, {}, {}, Compositions()
    allow_typed(overrides)
    for method in dict.fromkeys([BASELINE, *wanted]):
        if method in like:
            continue
        choice = [*overrides, f"method={method}", "tuned=none"]
        own = compositions.config(choice, {"role": "tune", "seed": tuning.seed})
        schema.check(own)
        bases[method] = own
        if method not in wanted and tuning.protocol == "paper":
            continue  # the baseline has no part in the others' trials there
        spaces[method] = space(own, tuning.protocol)
        if method in wanted:
            trials[method] = tuning.trials if explicit else _trials(own, method)
        for override in parsed:
            if override.key_or_group in spaces[method].paths():
                raise ConfigError(f"{override.key_or_group} is tuned for {method}, got a value for it too")
    spaces.setdefault(BASELINE, Space((), ()))
    for method, other in like.items():
        if other not in trials:
            raise ConfigError(f"tuning.like of {method} must be among the methods tuned, got {other}")
    return Plan(options.experiment, options, tuple(overrides), spaces, trials, bases, like, compositions)


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
