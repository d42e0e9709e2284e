"""The command `python -m clipbench.bench`: one subcommand a benchmark, each with its own `--help`."""

from __future__ import annotations

import importlib
import sys

from clipbench.bench import BENCHMARKS
from clipbench.cli.command import command
from clipbench.cli.outside import taken


def usage() -> str:
    """The help text."""
    rows = [f"  {name:<12}{text}" for name, text in BENCHMARKS.items()]
    head = "usage: python -m clipbench.bench {" + ",".join([*BENCHMARKS, "all"]) + "} [--smoke] [--results DIR] …"
    return "\n".join([head, "", *rows, f"  {'all':<12}all of them, one after the other"])


def main(arguments: list[str]) -> None:
    """Run the benchmarks that `arguments` name; SystemExit(2) for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, rest = arguments[0], arguments[1:]
    if name not in [*BENCHMARKS, "all"]:
        print(f"clipbench: the benchmark must be one of {', '.join([*BENCHMARKS, 'all'])}, got {name}", file=sys.stderr)
        raise SystemExit(2)
    for each in BENCHMARKS if name == "all" else [name]:
        importlib.import_module(f"clipbench.bench.{each}").main(rest)


if __name__ == "__main__":
    command(lambda: main(taken(sys.argv[1:])), passive=False)
