"""What a command line brings from outside of the package: folders of configs, and packages that these may name.

Every command takes `--config-dir DIR` (laid out as conf/: method/, model/, dataset/, experiment/, …) and `--allow
PACKAGE`, each as often as wanted. An installed package brings its own by entry points: `clipbench.methods`, `.models`,
`.datasets` and `.experiments`, whose value is a folder of the package laid out in the same way (`my_package.conf`) or
one class (`my_package.rules:MyClip`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint
from pathlib import Path

from hydra.core.config_store import ConfigStore

from clipbench.config.trust import allow, allow_typed, plugins
from clipbench.errors import ConfigError

VARIABLE = "CLIPBENCH_CONFIG_DIR"  # the folders of --config-dir, also for the processes that a command starts
FOLDERS, ALLOW = ("--config-dir", "-cd"), "--allow"
FIXED = ("--config-path", "-cp", "--config-name", "-cn")  # Hydra's, which would replace our config
SINGLE = {"clipbench.methods": "method", "clipbench.models": "model", "clipbench.datasets": "dataset"}


def taken(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--config-dir` and `--allow`, which hold from now on; targets typed in them are allowed.

    Raises ConfigError for a folder that is not there.
    """
    left, words = list(arguments), []
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if flag in FIXED or flag == "hydra.searchpath":
            raise ConfigError(f"{flag} is not an option (--config-dir DIR adds a folder of configs)")
        if flag not in (*FOLDERS, ALLOW):
            words.append(word)
            continue
        if not equals:
            value = left.pop(0) if left else ""
        if flag == ALLOW:
            allow(value.split(","))
        else:
            _add(value, flag)
    allow_typed(words)
    return words


def _add(folder: str, flag: str) -> None:
    path = Path(folder).expanduser().absolute()
    if not folder or not path.is_dir():
        raise ConfigError(f"{flag} must be followed by a folder that is there, got {folder or 'nothing'}")
    known = os.environ.get(VARIABLE, "").split(os.pathsep)
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*filter(None, known), str(path)]))


def folders() -> list[Path]:
    """Where configs from outside lie: the folders of --config-dir, then those of installed packages."""
    given = [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    installed = [found for point in plugins() if not point.attr and (found := _folder(point))]
    return list(dict.fromkeys([*given, *installed]))


def search() -> list[str]:
    """Hydra's override that looks into those folders too, none where there are none; classes are stored for Hydra."""
    for point in plugins():
        if point.attr and point.group in SINGLE:
            group, target = SINGLE[point.group], f"{point.module}.{point.attr}"
            ConfigStore.instance().store(name=point.name, group=group, node=_node(group, point.name, target))
    places = ",".join("'file://" + str(folder).replace("'", "\\'") + "'" for folder in folders())
    return [f"hydra.searchpath=[{places}]"] if places else []


def methods(conf: Path) -> list[str]:
    """The names of all methods that a command line can choose: those of `conf`, of --config-dir and of packages."""
    listed = {path.stem for folder in (conf, *folders()) for path in (folder / "method").glob("[!_]*.yaml")}
    classes = {point.name for point in plugins() if point.attr and point.group == "clipbench.methods"}
    return sorted(listed | classes)


def _node(group: str, name: str, target: str) -> dict[str, object]:
    """The config of a class: a method's is a clipper on the whole batch's gradient."""
    if group == "method":
        return {"name": name, "estimator": {"_target_": "clipbench.estimators.Batch"}, "clipper": {"_target_": target}}
    return {"name": name, "_target_": target}


def _folder(point: EntryPoint) -> Path | None:
    """The folder that an entry point names, found without importing its package."""
    top, *rest = point.module.split(".")
    spec = PathFinder.find_spec(top)
    places = [Path(place, *rest) for place in (spec.submodule_search_locations or []) if spec] if spec else []
    return next((place for place in places if place.is_dir()), None)
