"""What the light install leaves out: a command or a room that needs more says so in one line."""

from __future__ import annotations

import importlib.util
import sys

# The extra that brings each module; it is called at the top of rooms, before anything that is missing is imported.
EXTRAS = {
    **dict.fromkeys(
        (
            "PIL", "filelock", "hydra", "markdown_it", "matplotlib", "omegaconf", "optuna", "pandas", "psutil",
            "pyarrow", "pydantic", "scipy", "torchvision", "tqdm", "yaml",
        ),
        "bench",
    ),
    "accelerate": "integrations",
    "lightning": "integrations",
    "transformers": "integrations",
}  # fmt: skip


def need(*modules: str) -> None:
    """Return where all `modules` can be imported; nothing is imported here.

    Else SystemExit(2) after one line on stderr where the process is a command of clipbench (`python -m clipbench.…`),
    and ImportError with the same words anywhere else.

        >>> need("torch")
        >>> need("torch", "no_such")
        Traceback (most recent call last):
        ImportError: clipbench needs no_such for this, which is not installed: pip install no_such
    """
    missing = [module for module in modules if not _is_there(module)]
    if not missing:
        return
    extras = dict.fromkeys(EXTRAS[module] for module in missing if module in EXTRAS)
    source = f"'clipbench[{','.join(extras)}]'" if extras else " ".join(missing)
    verb = "is" if len(missing) == 1 else "are"
    line = f"clipbench needs {', '.join(missing)} for this, which {verb} not installed: pip install {source}"
    if _in_command():
        print(f"clipbench: {line.removeprefix('clipbench ')}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(line, name=missing[0])


def _is_there(module: str) -> bool:
    """Whether a module can be found; one that is imported is."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _in_command() -> bool:
    """Whether Python was started as `python -m clipbench.…`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] == "clipbench"
