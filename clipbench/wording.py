"""Words that lines for the user share."""

from __future__ import annotations


def amount(number: int | str, noun: str) -> str:
    """ "1 run", "2 runs"; a text, as of several numbers ("1, 2 threads"), counts as one only where it is "1"."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"
