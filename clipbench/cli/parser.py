"""Command lines of flags: what is wrong with one is one line with what was probably meant, and exit status 2."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, ArgumentTypeError, _SubParsersAction
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn


def writable(text: str) -> Path:
    """A folder to write into, which is made where it is not there: told before hours of work, not after them."""
    path = Path(text).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"must be a writable folder, got {text} ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"must be a writable folder, got {text}")
    return path


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


class Parser(ArgumentParser):
    """An ArgumentParser, and its subparsers, whose errors are one line without the usage, which --help prints."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"clipbench: {self._meant(message)} ({self.prog} --help)\n")

    def _meant(self, message: str) -> str:
        """The message with the nearest choice or flag for one that is none."""
        if found := re.search(r"(?:argument (\S+): )?invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = [word.strip(" '") for word in found[3].split(",")]
            near = get_close_matches(found[2], choices, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            return f"{found[2]} must be one of {', '.join(choices)}{hint}"
        if found := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            near = get_close_matches(found[1], list(self._flags()), n=1)
            return f"{message} (did you mean {near[0]}?)" if near else message
        return message

    def _flags(self) -> Iterator[str]:
        """The flags of this parser and of its subparsers."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, _SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._option_string_actions
