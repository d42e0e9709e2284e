"""Composing configs: what Hydra puts together becomes plain containers with the experiment's name in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from clipbench.cli.outside import search
from clipbench.config import environment, schema, tuned
from clipbench.config.trust import allow_typed
from clipbench.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_BESIDE = _PACKAGE.parent / "conf"
# In a checkout conf/ lies beside the package; in an installed wheel, inside it.
IN_CHECKOUT = (_BESIDE / "config.yaml").exists()
CONFIG_PATH = str(_BESIDE if IN_CHECKOUT else _PACKAGE / "conf")


PLACES = ("paths.results", "paths.tuned", "data.root", "logger.directory")  # options that name a folder


def expanded(value: str) -> str:
    """A path with "~" as the user's home; an empty one stays empty, for the check to refuse."""
    return str(Path(value).expanduser()) if value else value


OmegaConf.register_new_resolver("expanded", expanded, replace=True)
OmegaConf.register_new_resolver("oc.env", environment.read, replace=True)


def silent(line: str) -> None:
    """Say nothing."""


def resolve(
    config: DictConfig,
    choices: dict[str, Any] | None = None,
    given: Sequence[str] = (),
    say: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """The config with all interpolations resolved, as plain containers, `experiment` and tuned settings filled in.

    `choices` are Hydra's runtime choices, `given` the words of the command line; without choices, those of the Hydra
    job under way. What is said of tuned settings goes to `say`.
    """
    if choices is None:
        given = list(HydraConfig.get().overrides.task)
    chosen = choices if choices is not None else HydraConfig.get().runtime.choices
    own = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)  # a DictConfig gives nothing else
    taken = environment.references(own, {str(k): v for k, v in plain.items()})
    for option in PLACES:
        group, _, name = option.partition(".")
        node = plain.get(group)
        if isinstance(node, dict) and isinstance(node.get(name), str):
            node[name] = expanded(node[name])
    _check_choices(chosen)
    named = {"experiment": chosen.get("experiment") or "single", **{str(k): v for k, v in plain.items()}}
    whole = named | {"environment": taken}
    return tuned.apply(whole, given, tuned.folders(whole, Path(CONFIG_PATH), IN_CHECKOUT), say)


def _check_choices(choices: Mapping[str, Any]) -> None:
    """A choice is a name within its group, not a path that leads elsewhere: records are called as it is."""
    for group, choice in choices.items():
        for name in choice if isinstance(choice, list) else [choice]:
            if isinstance(name, str) and {"..", ""} & set(name.split("/")):
                raise ConfigError(f"{group} must be a name within conf/{group} (or that of --config-dir), got {name}")


def compose_node(overrides: Sequence[str]) -> DictConfig:
    """The composed config with Hydra's own node, interpolations unresolved. Raises Hydra's errors.

    Configs are looked for in clipbench's own folder, in those of `--config-dir` and in those of installed packages.
    """
    words = [word for word in overrides if not word.startswith("hydra.searchpath=")] + search()
    if GlobalHydra.instance().is_initialized():
        return hydra_compose("config", words, return_hydra_config=True)
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        return hydra_compose("config", words, return_hydra_config=True)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config that `python -m clipbench.run <overrides>` would run. Raises Hydra's errors.

    A `_target_` that stands in `overrides` is the caller's own, and allowed.
    """
    allow_typed(overrides)
    config = compose_node(overrides)
    return resolve(config, config.hydra.runtime.choices, overrides)


def must_train(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a config that trains no network: its steps and gradients are not to be measured."""
    if schema.is_study(config):
        raise ConfigError(f"experiment must be one that trains a network, got {config['experiment']}, which is a study")


class Compositions:
    """Configs of many runs: each choice of files is composed once, and what only sets values is laid over a copy.

    Hydra reads and merges some twenty files for one config, which takes ten times what all the rest of it does.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, ...], DictConfig] = {}

    def of(self, words: Sequence[str], groups: Collection[str]) -> dict[str, Any]:
        """What `compose` gives for the overrides `words`, of which those of `groups` choose files."""
        parsed = OverridesParser.create().parse_overrides(list(words))

        def is_value(override: Override) -> bool:
            composed = override.key_or_group in groups or override.key_or_group.startswith("hydra.")
            return override.type is OverrideType.CHANGE and not composed and not override.package

        values = {override.key_or_group: override.value() for override in parsed if is_value(override)}
        choice = [text for text, override in zip(words, parsed, strict=True) if not is_value(override)]
        return self.config(choice, values, words)

    def config(self, choice: Sequence[str], values: Mapping[str, Any], given: Sequence[str] = ()) -> dict[str, Any]:
        """What `compose` gives for the overrides `choice` followed by `values` (option → value).

        `given` are the words of the command line. Raises Hydra's errors, and ConfigError for a value of no option.
        """
        if tuple(choice) not in self._nodes:
            self._nodes[tuple(choice)] = compose_node(choice)
        node = copy.deepcopy(self._nodes[tuple(choice)])
        for option, value in values.items():
            try:
                OmegaConf.update(node, option, value)
            except (ConfigAttributeError, ConfigKeyError):
                raise ConfigError(f"{option} is not an option") from None
        return resolve(node, node.hydra.runtime.choices, given)
