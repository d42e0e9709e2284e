"""The blocks of docs/in_your_loop.md, by the heading they stand under."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "in_your_loop.md"
RATE = 0.1


def blocks() -> dict[str, list[str]]:
    """Heading → its blocks, in order; the beginning is under the page's own."""
    parts = re.split(r"^#+ (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    found = {
        title: re.findall(r"```python\n(.*?)```", body, re.DOTALL)
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {title: codes for title, codes in found.items() if codes}


def begin(**names: Any) -> dict[str, Any]:
    """What the page's first block leaves, with `start`: the weights before any step."""
    space: dict[str, Any] = {"__name__": "in_your_loop", **names}
    exec(blocks()["Clip in your own loop"][0], space)
    return keep(space)


def keep(space: dict[str, Any]) -> dict[str, Any]:
    """The weights as they are, in float64, by name."""
    space["before"] = {name: value.detach().double().clone() for name, value in space["model"].named_parameters()}
    return space


def step(space: dict[str, Any]) -> dict[str, Any]:
    """What one SGD step subtracted, as a gradient."""
    model = space["model"]
    model = getattr(model, "module", model)
    return {n: (space["before"][n] - p.detach().double()) / RATE for n, p in model.named_parameters()}
