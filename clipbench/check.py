"""The command `python -m clipbench.check`: whether a class from outside keeps what the bench relies on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipbench.extras import need

need("hydra", "omegaconf", "pydantic", "yaml")

import yaml

from clipbench.cli.command import command
from clipbench.cli.outside import taken
from clipbench.config.trust import allow
from clipbench.errors import ConfigError

HELP = """\
usage: python -m clipbench.check my_package.MyClip [option=value …]
       python -m clipbench.check method=my_rule [--config-dir DIR] [--allow PACKAGE]

Try out a clipper, an estimator, a model or a dataset, and say what it keeps and what it does not, and why.

  part=update      what a clipper is tried as: clipper (default), estimator, update
  kind=image       the data a model is built for: vector (default), image, tokens
  root=DIR         where a dataset's files lie (default: data)
  option=value     the class's own options, as threshold=0.5; a τ that must be given is 1 where it is not

Exit status: 0 where everything is kept, 1 where something is not, 2 for bad input. In one's own tests:

  from clipbench.contract import examine_outside, method_of
  assert all(each.held is not False for each in examine_outside(method_of("my_package.MyClip", {"threshold": 1.0})))

examples:
  python -m clipbench.check clipbench.clipping.NormClip threshold=1
  python -m clipbench.check clipbench.models.MLP kind=vector
"""
SIGNS = {True: "kept", False: "BROKEN", None: "-"}


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 where a promise is broken. Raises ConfigError for bad input."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    name, *words = taken(arguments)
    sys.path.insert(0, "")  # what lies in the current folder, however this was started
    findings = _findings(name, _options(words))
    for each in findings:
        print(f"{SIGNS[each.held]:<8}{each.promise:<10}{each.why}", flush=True)
    broken = sum(each.held is False for each in findings)
    print(f"{name}: {broken} of {len(findings)} broken" if broken else f"{name}: nothing broken")
    return int(broken > 0)


def _findings(name: str, options: dict[str, Any]) -> list[Any]:
    from clipbench.cli.compose import compose
    from clipbench.config.places import could_be, place
    from clipbench.config.targets import target_of
    from clipbench.contract import examine_dataset, examine_model, examine_outside, method_of

    part, kind = options.pop("part", None), options.pop("kind", "vector")
    root = Path(str(options.pop("root", "data"))).expanduser()
    if part not in (None, "clipper", "estimator", "update"):
        raise ConfigError(f"part must be one of clipper, estimator, update, got {part}")
    if kind not in ("vector", "image", "tokens"):
        raise ConfigError(f"kind must be one of vector, image, tokens, got {kind}")
    if name.startswith("method="):
        return examine_outside(compose([name])["method"])
    allow([name])
    made = target_of(name, "class").made
    if could_be(made, place("model")):
        return examine_model(name, kind, options)
    if part is None and could_be(made, place("dataset")):
        return examine_dataset(name, root, options)
    return examine_outside(method_of(name, options, part))


def _options(words: Sequence[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise ConfigError(f"{word} must be an option of the class as key=value (--help lists the others)")
        found[key] = yaml.safe_load(value)
    return found


if __name__ == "__main__":
    command(lambda: sys.exit(main(sys.argv[1:])))
