"""The shell of every command: errors a user can cause become one line and exit status 2, without a traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from clipbench.errors import ConfigError, Interrupted, JobError

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of these is the user's own choice


def wait_passively() -> None:
    """Let threads that wait for each other sleep, not spin: on a shared machine spinning takes others' time and one's
    own. OpenMP reads this once, when torch loads it, so this comes before. An own value of the user wins.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


MOST_LISTED = 15  # choices of a group that are all named


def command(main: Callable[[], Any], passive: bool = True) -> None:
    """Call `main` and leave with the exit status that belongs to how it ended.

    0 done; 2 bad input, one line on stderr; 1 any other error; 130 and 143 after SIGINT and SIGTERM.
    `HYDRA_FULL_ERROR=1` shows whole tracebacks. `passive`: threads wait asleep; not where time is measured.
    """
    if passive:
        wait_passively()
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises then, and leaves the printing to us
    try:
        main()
    except Interrupted as stop:
        print("interrupted: checkpoint written; the same command goes on from it", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, JobError) as raised:
        error = raised.error if isinstance(raised, JobError) else raised
        line = condense(error)
        if full or line is None:
            raise error from None
        print(f"clipbench: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RuntimeError) else 2)


def condense(error: BaseException) -> str | None:
    """The user's line for an error a user can cause (three at most, for missing data); None for any other."""
    from clipbench.errors import RecordError

    if isinstance(error, ConfigError | RecordError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _hydra_line(str(error))
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return "a group must be given a choice, got null (noise=none, logger=none and tuned=none switch those off)"
    return None


def _hydra_line(text: str) -> str:
    """Hydra's and OmegaConf's errors of 5 to 10 lines, as one."""
    if found := re.search(r"Could not override '([^']*)'", text):
        return f"{found[1]} is not an option{_near(found[1])}"
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        if options:
            return _choices(found[1], sorted(line.strip() for line in options[1].splitlines()), found[2])
        return f"{found[1]} has no choice {found[2]}"
    if found := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{found[1]}: several values need the flag -m (multirun)"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return " ".join(line for line in lines[:3] if not line.startswith("See http"))


def _choices(group: str, known: list[str], given: str) -> str:
    """What a group may be: all of a few, of many those that were probably meant."""
    near = get_close_matches(given, known, n=4)
    if len(known) <= MOST_LISTED or not near:
        return f"{group} must be one of {', '.join(known)}, got {given}"
    return f"{group} must be one of {len(known)} choices (did you mean {' or '.join(near)}?), got {given}"


def _near(option: str) -> str:
    """A hint at the option of the default config that was probably meant."""
    from clipbench.cli.compose import compose

    def names(node: Any, path: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [name for key, value in node.items() for name in [f"{path}.{key}", *names(value, f"{path}.{key}")]]

    GlobalHydra.instance().clear()
    known = {name.lstrip(".") for name in names(compose([]))}
    near = get_close_matches(option, known, n=1)
    return f" (did you mean {near[0]}?)" if near else " (python -m clipbench.run --help lists them)"
