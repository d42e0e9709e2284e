"""Command lines of `key=value` words: a command's own words become options of its node, the rest go to Hydra."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from clipbench.cli.outside import taken
from clipbench.config.schema import GROUPS, Options
from clipbench.errors import ConfigError

KNOWN = {*Options.model_fields, *GROUPS}

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
        elif key.partition(".")[0] not in KNOWN and (near := get_close_matches(key, words, n=1)):
            raise ConfigError(f"{key} is not an option (did you mean {near[0]}?)")
        else:
            found.append(word)
    return found


def at_home(words: Sequence[str]) -> list[str]:
    """The words, with `key=~/folder` as the folder in the user's home: a shell leaves that alone, Hydra refuses it."""
    return [HOME.sub(lambda found: found[1] + str(Path(found[2]).expanduser()), word) for word in words]


def flags_first(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The words with the parser's flags (and their values) before all others, which is the only order that it takes.

    Raises ConfigError for a flag that it does not know.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the flags)")

    parser.error = refuse  # type: ignore[method-assign]
    plain = parser.parse_intermixed_args(list(words)).overrides
    flags = list(words)
    for word in reversed(plain):  # from the end: a flag's value that reads the same stands before it
        del flags[len(flags) - 1 - flags[::-1].index(word)]
    return [*flags, *plain]


def words_of_list(value: str) -> str:
    """`a,b` as `[a,b]`; a list or null stays."""
    return value if value.startswith("[") or value == "null" else f"[{value}]"
