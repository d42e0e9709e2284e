"""Command lines of `key=value` words: a command's own words become options of its node, the rest go to Hydra."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from clipbench.cli.outside import taken
from clipbench.errors import ConfigError

HOME = re.compile(r"^([\w.+]+=)(~[\w.-]*(?:/.*)?)$")


def overrides(arguments: Sequence[str], node: str, words: Collection[str]) -> list[str]:
    """Hydra overrides: `trials=8` becomes `tuning.trials=8` for node "tuning"; other words stay as they are.

    A list is written with commas: `methods=sgd,ps_clip`. `--config-dir` and `--allow` are taken out (see `outside`).
    Raises ConfigError for what is neither.
    """
    found = []
    for word in taken(at_home(arguments)):
        key, equals, value = word.partition("=")
        if word.startswith("-") or not equals:
            raise ConfigError(f"{word} must be an option as key=value (--help lists them)")
        if key in words:
            listed = words_of_list(value) if key in ("methods", "final_seeds") else value
            found.append(f"{node}.{key}={listed}")
        else:
            found.append(word)
    return found


def at_home(words: Sequence[str]) -> list[str]:
    """The words, with `key=~/folder` as the folder in the user's home: a shell leaves that alone, Hydra refuses it."""
    return [HOME.sub(lambda found: found[1] + str(Path(found[2]).expanduser()), word) for word in words]


def words_of_list(value: str) -> str:
    """`a,b` as `[a,b]`; a list or null stays."""
    return value if value.startswith("[") or value == "null" else f"[{value}]"
