"""Hydra's and OmegaConf's errors of 5 to 10 lines as one line that says what was probably meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from clipbench.cli.outside import folders

MOST_LISTED = 15  # choices of a group that are all named
MOST_MEANT = 3  # options that are proposed for one that is none
QUOTE = """a value with any of ( ) [ ] { } ' " , = : # or a space in it needs quotes twice: 'key="a value"'"""


def line(text: str, word: str = "") -> str:
    """The one line for an error's text; `word` of the command line is what a parser could not read."""
    if found := re.search(r"Could not override '([^']*)'", text):
        return f"{found[1]} is not an option{near(found[1])}"
    if found := re.search(r"Could not find 'experiment/([^']+)'", text):
        return experiments(found[1])
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        if options:
            return choices(found[1], sorted(line.strip() for line in options[1].splitlines()), found[2])
        return f"{found[1]} has no choice {found[2]}"
    if found := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{found[1]}: several values need the flag -m (multirun)"
    if found := re.search(r"sweep type : (\w+)_SWEEP", text):
        return f"a sweep must be a,b or choice(…), range(…) or glob(…), got {found[1].lower()}(…)"
    if found := re.search(r"LexerNoViableAltException: (.*)|no viable alternative at input '(.*)'", text):
        return f"{word or _word(found[1] or found[2])} cannot be read as key=value ({QUOTE})"
    if found := re.search(r"\w+ while evaluating '.*': (.*)", text):
        return f"{word} cannot be read: {found[1]}"
    if word and re.match("mismatched input|extraneous input|missing|token recognition error", text):
        return f"{word} cannot be read as key=value ({QUOTE})"
    if "Error parsing override" in text and (found := re.search(r"'(.*)'", text)):
        return f"Error parsing override '{found[1]}': it must be key=value ({QUOTE})"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return " ".join(line for line in lines[:3] if not line.startswith("See http"))


def _word(part: str) -> str:
    """The word of the command line that holds `part`, which is all that a parser's message quotes."""
    return next((word for word in sys.argv[1:] if part in word), part)


def choices(group: str, known: Sequence[str], given: str) -> str:
    """What a group may be: all of a few, of many those that were probably meant."""
    meant = get_close_matches(given, known, n=4)
    if len(known) <= MOST_LISTED or not meant:
        return f"{group} must be one of {', '.join(known)}, got {given}"
    return f"{group} must be one of {len(known)} choices (did you mean {' or '.join(meant)}?), got {given}"


def experiments(given: str) -> str:
    """What `experiment` may be: the sizes of one that is there, else those that were probably meant."""
    known: dict[str, list[str]] = {}
    for folder in _config_folders():
        for path in sorted((folder / "experiment").glob("*/[!_]*.yaml")):
            known.setdefault(path.parent.name, []).append(path.stem)
    name, _, _ = given.partition("/")
    if name in known:
        return f"experiment must be one of {', '.join(f'{name}/{size}' for size in known[name])}, got {given}"
    meant = get_close_matches(name, known) or sorted(known)
    return f"experiment must be <name>/<size> with a name of {', '.join(meant)}, got {given}"


def _config_folders() -> Iterator[Path]:
    """The package's folder of configs, and those from outside."""
    from clipbench.cli.compose import CONFIG_PATH

    yield Path(CONFIG_PATH)
    yield from folders()


def near(option: str) -> str:
    """A hint at the option that was probably meant, of the config that the command line's other groups make."""
    # What the environment has set is kept beside the options, and is none.
    names = list(_names({key: value for key, value in _config().items() if key != "environment"}))
    # By its last part, as `lr` for optimizer.lr is commoner than a slip of the keyboard.
    known = names if "." in option else {name.rpartition(".")[2] for name in names}
    meant = get_close_matches(option, known, n=1)
    if not meant and _is_argument(option):
        return f" in its file (an argument that the file leaves to the class is added: +{option}=…)"
    if not meant:
        return " (python -m clipbench.run --help lists them)"
    places = meant if meant[0] in names else [name for name in names if name.endswith(f".{meant[0]}")]
    return f" (did you mean {' or '.join(sorted(places, key=len)[:MOST_MEANT])}?)"


def _is_argument(option: str) -> bool:
    """Whether the option stands directly in what a class is built from."""
    node: Any = _config()
    for key in option.split(".")[:-1]:
        node = node.get(key) if isinstance(node, dict) else None
    return isinstance(node, dict) and "_target_" in node


def _config() -> dict[str, Any]:
    """The config of the command line's groups, the default one where they do not compose."""
    from clipbench.cli.compose import compose

    groups = [word for word in sys.argv[1:] if re.fullmatch(r"(method|optimizer|dataset|model|schedule)=[\w-]+", word)]
    GlobalHydra.instance().clear()
    try:
        return compose(groups)
    except Exception:  # the groups, too, may be wrong
        return compose([])


def _names(node: Any, path: str = "") -> Iterator[str]:
    """The dotted names of a config's values and groups' choices."""
    for key, value in node.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            if not path:
                yield name
            yield from _names(value, name)
        elif key != "_target_":
            yield name
