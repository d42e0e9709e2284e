"""All claims of conf/claims.yaml, decided from collected results."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Decision, decide

ROOM = "clipbench.analysis.claims."


class Claim(NamedTuple):
    """One entry of conf/claims.yaml: what a paper says, and the rule that was fixed before the runs.

    rule: the rule in words; version counts its changes; statistic: the function (below `clipbench.analysis.claims`)
    that makes the statements, and its options.
    """

    name: str
    sentence: str
    rule: str
    version: int
    scale: str
    statistic: str
    options: dict[str, Any]


class JudgedClaim(NamedTuple):
    """A claim and its verdict."""

    claim: Claim
    decision: Decision


def claims(path: Path | None = None) -> list[Claim]:
    """The entries of conf/claims.yaml (`path`: another file). Raises ValueError where an entry lacks a field."""
    text = (path or claims_file()).read_text(encoding="utf-8")
    found = []
    for name, entry in yaml.safe_load(text).items():
        missing = {"sentence", "rule", "version", "scale", "statistic"} - set(entry)
        if missing:
            raise ValueError(f"{name} must have {', '.join(sorted(missing))}, got {', '.join(sorted(entry))}")
        statistic = dict(entry["statistic"])
        function = statistic.pop("function")
        kept = {key: entry[key] for key in ("sentence", "rule", "version", "scale")}
        found.append(Claim(name, statistic=function, options=statistic, **kept))
    return found


def claims_file() -> Path:
    """conf/claims.yaml: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(str(resources.files("clipbench")))
    beside = package.parent / "conf" / "claims.yaml"
    return beside if beside.exists() else package / "conf" / "claims.yaml"


def verdicts(results: Path, path: Path | None = None) -> list[JudgedClaim]:
    """Every claim's verdict; "not decided" with the reason where its data are not there."""
    source = Source(results)
    return [JudgedClaim(claim, _decide(claim, source)) for claim in claims(path)]


def _decide(claim: Claim, source: Source) -> Decision:
    try:
        return decide(statements_of(claim, source))
    except Missing as missing:
        return Decision("not decided", str(missing), missing.statements)


def statements_of(claim: Claim, source: Source) -> Any:
    """The statements of a claim's statistic. Raises Missing where data are not there."""
    module, _, function = claim.statistic.rpartition(".")
    options: Mapping[str, Any] = claim.options
    return pkgutil.resolve_name(f"{ROOM}{module}:{function}")(source, **options)
