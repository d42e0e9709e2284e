"""The shell of every command: errors a user can cause become one line and exit status 2, without a traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from clipbench.cli import hints
from clipbench.cli.streams import outlast
from clipbench.config.environment import hidden
from clipbench.errors import ConfigError, Interrupted, JobError, RecordError, Unwritable

# "<argument> must be <what>, got <value>", as every check of the package writes it.
BAD_INPUT = re.compile(r"[\w.*\[\]]+ must [^\n]+, got [^\n]*")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of these is the user's own choice


def wait_passively() -> None:
    """Let threads that wait for each other sleep, not spin: on a shared machine spinning takes others' time and one's
    own. OpenMP reads this once, when torch loads it, so this comes before. An own value of the user wins.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def command(main: Callable[[], Any], passive: bool = True) -> None:
    """Call `main` and leave with the exit status that belongs to how it ended.

    0 done; 2 bad input, one line on stderr; 1 any other error; 130 and 143 after SIGINT and SIGTERM.
    `HYDRA_FULL_ERROR=1` shows whole tracebacks. `passive`: threads wait asleep; not where time is measured.
    """
    if passive:
        wait_passively()
    outlast()
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
        sys.exit(2 if isinstance(error, ConfigError | Unwritable | ValueError | HydraException) else 1)


def condense(error: BaseException) -> str | None:
    """The user's line for an error a user can cause (three at most, for missing data); None for any other.

    Values that came from the environment are shown as their references.
    """
    text = hidden(str(error))
    if isinstance(error, ConfigError | RecordError):
        return text
    if isinstance(error, HydraException | OmegaConfBaseException):
        return hidden(hints.line(text, str(getattr(error, "override", None) or "")))
    if isinstance(error, ValueError) and "Config group override must be" in text:
        return "a group must be given a choice, got null (noise=none, logger=none and tuned=none switch those off)"
    if isinstance(error, ValueError) and BAD_INPUT.fullmatch(text):
        return text
    return None
