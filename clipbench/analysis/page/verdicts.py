"""The claims' part of the report: a table of all verdicts, and a section for each claim."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clipbench.analysis.claims import JudgedClaim, Statement
from clipbench.analysis.tables import NONE, Table, estimate, number

STATES = {"shown": "shown", "refuted": "refuted", "open": "open"}


def verdict_table(judged_claims: Sequence[JudgedClaim]) -> Table:
    """Claim, verdict, the effect that is nearest to deciding otherwise, and the scale that it holds for."""
    rows = []
    for claim, decision in judged_claims:
        required = [s for s in decision.statements if s.required]
        counts = [f"{sum(s.state == state for s in required)} {word}" for state, word in STATES.items()]
        stated = ", ".join(count for count in counts if not count.startswith("0 ")) or NONE
        rows.append([claim.name, claim.sentence, f"**{decision.verdict}**", stated, claim.scale])
    columns = ["claim", "what the paper says", "verdict", "statements", "holds for"]
    notes = [
        "A statement is shown where its 95 % interval lies on the claimed side, refuted where it lies on the other "
        "side or within the margin, and open otherwise. The rules were fixed before the runs (conf/claims.yaml)."
    ]
    return Table("Verdicts", columns, rows, notes)


def effect_text(statement: Statement) -> str:
    """The effect with its interval and n, in the statement's unit: points, per cent, or plain."""
    effect = statement.effect
    if statement.identical:
        return "0: it clips under 1 %, so it is its baseline"
    if statement.unit == "accuracy":
        return estimate(effect, "accuracy", signed=True)
    if statement.unit == "log":
        changes = [100 * math.expm1(x) for x in effect[:3]]
        half = (changes[2] - changes[1]) / 2
        shown = [f"{number(change, half, signed=True)} %" for change in changes]
        return f"{shown[0]} [{shown[1]}, {shown[2]}] (n = {effect.n})"
    half = (effect.high - effect.low) / 2
    texts = [number(x, half) for x in effect[:3]]
    unit = f" {statement.unit}" if statement.unit in ("×", "points") else ""
    bounds = f" [{texts[1]}, {texts[2]}]" if math.isfinite(half) else ""
    return f"{texts[0]}{unit}{bounds}" + (f" (n = {effect.n})" if effect.n else "")


def claim_section(judged: JudgedClaim, budget: str = "") -> str:
    """A claim's sentence, rule, verdict with its reason, and every statement with effect, interval and n."""
    claim, decision = judged
    lines = [
        f"### {claim.name}: {decision.verdict}",
        "",
        f"> {claim.sentence}",
        "",
        f"Rule (version {claim.version}): {claim.rule}",
        "",
        f"Scale: {claim.scale}.{f' {budget}' if budget else ''}",
        "",
        f"Why: {decision.reason}.",
        "",
    ]
    if decision.statements:
        lines += ["| statement | effect [95 % interval] | state |", "| --- | ---: | --- |"]
        for s in decision.statements:
            state = STATES[s.state] + ("" if s.required else ", beside the verdict")
            lines.append(f"| {s.text.replace('|', '/')} | {effect_text(s)} | {state} |")
        lines.append("")
    return "\n".join(lines)
