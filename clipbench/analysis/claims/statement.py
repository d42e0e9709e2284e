"""Statements about effects, and the verdict on a claim that rests on them.

A statement is *shown* where its two-sided 95 % interval lies wholly on the claimed side, *refuted* where it lies wholly
on the other side or, where a margin is given, wholly inside the margin, and *open* otherwise. A claim that needs ANY of
m statements has Bonferroni intervals (level 1 − 0.05/m), which whoever computes the effects passes to the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy import stats as scipy_stats

from clipbench.analysis.stats import VERDICT_FROM, Interval
from clipbench.wording import amount

Side = Literal["above", "below"]
State = Literal["shown", "refuted", "open"]
Verdict = Literal["reproduced", "not reproduced", "partly", "not decided"]


class Statement(NamedTuple):
    """One effect and what is claimed of it: that it lies `side` ("above" or "below") `bound`.

    text: the statement in words; effect: estimate with its interval and n, in `unit`.
    margin: effects within `bound` ± `margin` count as none (None: no margin was fixed).
    required: False for what is only shown beside the verdict.
    group: statements of one group are alternatives: ANY of them is enough (None: the statement stands for itself).
    identical: the method IS its baseline here (a tuned threshold that clips under 1 %), so the effect is 0.
    seeds: the effects are over seeds, of which a verdict needs at least `VERDICT_FROM`.
    """

    text: str
    effect: Interval
    side: Side
    bound: float = 0.0
    margin: float | None = None
    unit: str = ""
    required: bool = True
    group: str | None = None
    identical: bool = False
    seeds: bool = True

    @property
    def state(self) -> State:
        """Whether the statement is shown, refuted or open; open below `VERDICT_FROM` seeds or without an interval."""
        if self.identical:
            return "refuted"
        low, high = self.effect.low - self.bound, self.effect.high - self.bound
        if not (math.isfinite(low) or math.isfinite(high)) or (self.seeds and self.effect.n < VERDICT_FROM):
            return "open"
        claimed, other = (low > 0, high < 0) if self.side == "above" else (high < 0, low > 0)
        if claimed:
            return "shown"
        return "refuted" if other or self.inside_margin else "open"

    @property
    def inside_margin(self) -> bool:
        """Whether the whole interval lies within the margin around `bound`: no effect that counts."""
        if self.margin is None:
            return False
        return -self.margin <= self.effect.low - self.bound and self.effect.high - self.bound <= self.margin

    def seeds_needed(self) -> int | None:
        """About how many seeds would decide an open statement, were the estimate and the spread to stay as they are.

        The half-width t s/√n is brought below the estimate's distance to the bound, or to the far end of the margin
        where that is nearer. None where no number of seeds would, or no spread is known.
        """
        half = (self.effect.high - self.effect.low) / 2
        gap = abs(self.effect.estimate - self.bound)
        if self.margin is not None:
            gap = max(gap, self.margin - gap)
        if self.effect.n < 2 or not math.isfinite(half) or not gap > 0:
            return None
        spread = half * math.sqrt(self.effect.n) / scipy_stats.t.ppf(0.975, self.effect.n - 1)
        for n in range(self.effect.n + 1, 10_001):
            if scipy_stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) < gap:
                return n
        return None


class Decision(NamedTuple):
    """A verdict, the reason in one sentence, and the statements it rests on."""

    verdict: Verdict
    reason: str
    statements: tuple[Statement, ...]


def decide(statements: Sequence[Statement]) -> Decision:
    """The verdict on a claim, checked in the order: reproduced, not reproduced, partly, not decided.

    reproduced: all required statements shown, a group of alternatives being one statement that is shown where any of
    them is and refuted where all of them are. not reproduced: a required one refuted, or every effect inside its
    margin. partly: some shown, none refuted. not decided: otherwise, also without any required statement.
    """
    given = tuple(statements)
    units = _units([s for s in given if s.required])
    states = [state for _, state in units]
    if units and all(state == "shown" for state in states):
        return Decision("reproduced", "every required statement is shown", given)
    refuted = [text for text, state in units if state == "refuted"]
    if refuted:
        return Decision("not reproduced", f"refuted: {'; '.join(refuted)}", given)
    required = [s for s in given if s.required]
    if required and all(s.inside_margin for s in required):
        return Decision("not reproduced", "every effect lies inside the margin", given)
    shown = [text for text, state in units if state == "shown"]
    left = [text for text, state in units if state == "open"]
    if shown:
        return Decision("partly", f"shown: {'; '.join(shown)}; open: {'; '.join(left)}", given)
    if not units:
        return Decision("not decided", "no runs", given)
    return Decision("not decided", f"open: {'; '.join(left)}{_wanted(given)}", given)


def _units(required: Sequence[Statement]) -> list[tuple[str, State]]:
    """(text, state) of every required statement, alternatives taken together."""
    units: list[tuple[str, State]] = [(s.text, s.state) for s in required if s.group is None]
    groups = dict.fromkeys(s.group for s in required if s.group is not None)
    for group in groups:
        members = [s for s in required if s.group == group]
        states = {s.state for s in members}
        state: State = "shown" if "shown" in states else "refuted" if states == {"refuted"} else "open"
        units.append((f"any of: {', '.join(s.text for s in members)}", state))
    return units


def _wanted(statements: Sequence[Statement]) -> str:
    """How many seeds the open required statements would take, in words."""
    wanted = [s.seeds_needed() for s in statements if s.required and s.seeds and s.state == "open"]
    known = [n for n in wanted if n is not None]
    if not known:
        return ""
    return f" (about {amount(max(known), 'seed')} would decide)" if len(known) == len(wanted) else ""
