"""`python -m clipbench`: the commands, one line each. Reads their sources, so that a light install lists them too."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOM = Path(__file__).parent
ENTRY = 'if __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Each command's name and what it does: the first line of its module's docstring, behind the colon (or arrow)."""
    found = {}
    for path in sorted([*ROOM.glob("*.py"), *ROOM.glob("*/__main__.py")]):
        text = path.read_text(encoding="utf-8")
        if (path.parent == ROOM and path.name == "__main__.py") or ENTRY not in text:
            continue
        name = path.parent.name if path.name == "__main__.py" else path.stem
        first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
        found[name] = re.sub(r"^.*?`python -m [\w.]+`: ", "", first)
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the list. Status 2 where a command was meant: each is a module of its own."""
    known = commands()
    if arguments and arguments[0] not in ("-h", "--help"):
        word = arguments[0]
        meant = f"python -m clipbench.{word}" if word in known else "one of the list that python -m clipbench prints"
        print(f"clipbench: a command is a module, got {word} (meant: {meant})", file=sys.stderr)
        return 2
    print(f"clipbench {version('clipbench')}: a reproducible benchmark suite for gradient clipping\n")
    for name, about in known.items():
        print(f"python -m clipbench.{name:<12} {about}")
    print("\nEach has --help. The clippers themselves: from clipbench import PerSampleClipper, SpectralClip, …")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
