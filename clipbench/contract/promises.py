"""The promises that every method keeps; each is tried by training a few steps, and can be broken.

- identity: at τ = ∞ the weights are plain SGD's to the last bit, and nothing counts as clipped;
- effect: every part of the method does something, and the weights change with every τ;
- share: what is reported as clipped is a share, in [0, 1], and above 0 where τ is tiny;
- state: saved, loaded into a fresh method and continued at every step, it ends with the same bits as undisturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clipbench.contract.bench import Bench
from clipbench.contract.parts import Place, at, is_plain, nodes, part_of, parts, scales, taus, without

TINY = 1e-4  # far below every gradient's norm on the bench
SOME = (0.01, 1.0)
Method = Mapping[str, Any]


class Finding(NamedTuple):
    """One promise: `held` True, False, or None where it says nothing about the method; `why` in words."""

    promise: str
    held: bool | None
    why: str


def examine(method: Method, bench: Bench | None = None) -> list[Finding]:
    """Try out a method's config (plain containers, as `compose([...])["method"]`): one finding for each promise.

    `bench` may be shared between methods. Raises ConfigError for a method that cannot be built; what its code raises
    is passed on.

        >>> from clipbench.cli.compose import compose
        >>> [(each.promise, each.held) for each in examine(compose(["method=norm_clip"])["method"])]
        [('identity', True), ('effect', True), ('share', True), ('state', True)]
    """
    given = bench or Bench()
    return [promise(method, given) for promise in PROMISES]


def identity(method: Method, bench: Bench) -> Finding:
    """At τ = ∞ the parts that have a τ are as if they were not there."""
    places = taus(method)
    if not places and not _plain(method):
        return Finding("identity", None, "it has no τ")
    if scales(method):
        return Finding("identity", None, "it scales by τ, so that ∞ is no setting of it")
    rest = without(method, {part_of(place) for place in places})
    free = bench.train(at(method, dict.fromkeys(places, math.inf)))
    where = f"at {_named(places)} = ∞ " if places else ""
    other = "plain SGD's" if _plain(rest) else "those of its parts without τ"
    if not free.same_weights(bench.train(rest)):
        return Finding("identity", False, f"{where}the weights are not {other}")
    if _plain(rest) and any(one != 0 for one in free.shares()):
        return Finding("identity", False, f"{where}a share of {max(free.shares()):g} counts as clipped")
    return Finding("identity", True, f"{where}the weights are {other} to the last bit")


def effect(method: Method, bench: Bench) -> Finding:
    """Every part does something by itself, and every τ changes what it does."""
    if _plain(method):
        return Finding("effect", None, "it is plain SGD")
    for place in _own(method):
        strong = only(method, place)
        if bench.train(strong).same_weights(bench.train(without(strong, [place]))):
            return Finding("effect", False, f"{_named([place])} changes nothing{_by(method, place)}")
    for tau in taus(method):
        strong = only(method, tau)
        for value in SOME:
            if bench.train(at(strong, {tau: value})).same_weights(bench.train(strong)):
                why = f"the weights are the same at {_named([tau])} = {TINY:g} and {value:g}"
                return Finding("effect", False, why)
    return Finding(
        "effect", True, "every part of it changes the weights" + ", which change with τ" * bool(taus(method))
    )


def share(method: Method, bench: Bench) -> Finding:
    """What is reported as clipped."""
    for config in settings(method):
        for one in bench.train(config).shares():
            if not 0 <= one <= 1:
                return Finding("share", False, f"a share of {one:g} was clipped, which must be in [0, 1]")
    shares = bench.train(strongest(method)).shares()
    if _plain(method) or not _reports(method, bench):
        none = all(one == 0 for one in shares)
        return Finding("share", none, "it clips nothing" if none else "it does not clip but reports a share")
    where = f"at {_named(taus(method))} = {TINY:g}" if taus(method) else f"in {len(shares)} figures"
    return Finding("share", max(shares) > 0, f"{where} the largest share clipped is {max(shares):g}")


def state(method: Method, bench: Bench) -> Finding:
    """Saved, loaded and continued; at several τ, as one that clips nothing (or everything alike) needs no state."""
    for config in settings(method):
        if not bench.train_in_parts(config).same(bench.train(config)):
            values = ", ".join(f"{_named([tau])} = {_value(config, tau):g}" for tau in taus(method))
            where = f" (at {values})" if values else ""
            return Finding(
                "state", False, f"saved, loaded and continued at every step it ends otherwise than undisturbed{where}"
            )
    return Finding("state", True, "saved, loaded and continued at every step it ends with the same bits")


PROMISES: tuple[Callable[[Method, Bench], Finding], ...] = (identity, effect, share, state)


def strongest(method: Method) -> dict[str, Any]:
    """Every τ tiny."""
    return at(method, dict.fromkeys(taus(method), TINY))


def only(method: Method, place: Place) -> dict[str, Any]:
    """What is τ at `place` or below it tiny, every other τ ∞."""
    inside = {tau: tau[: len(place)] == place for tau in taus(method)}
    return at(method, {tau: TINY if within else math.inf for tau, within in inside.items()})


def settings(method: Method) -> list[dict[str, Any]]:
    """The method as it is, with every τ at one value, and with each τ tiny alone."""
    places = taus(method)
    found = [dict(method)]
    if places:
        found += [at(method, dict.fromkeys(places, value)) for value in (TINY, *SOME)]
    return found + ([only(method, tau) for tau in places] if len(places) > 1 else [])


def _own(method: Method) -> list[Place]:
    found = dict(nodes(method))
    return [place for place in parts(method) if not is_plain(found[place])]


def _plain(method: Method) -> bool:
    """Whether nothing is left in it but plain SGD; a part around such parts counts as one of them."""
    found, places = dict(nodes(method)), parts(method)
    return all(
        is_plain(found[place]) or any(other != place and other[: len(place)] == place for other in places)
        for place in places
    )


def _reports(method: Method, bench: Bench) -> bool:
    """Whether any part is a clipper or clips samples; a mean of another kind has nothing to report."""
    figures = bench.train(method).figures[-1]
    inside = any(name.endswith("_clipped_fraction") for name in figures)
    return inside or any(place[0] != "estimator" for place in _own(method))


def _by(method: Method, place: Place) -> str:
    inside = [tau for tau in taus(method) if tau[: len(place)] == place]
    return f" at {_named(inside)} = {TINY:g}" if inside else ""


def _value(config: Method, place: Place) -> float:
    node: Any = config
    for key in place:
        node = node[key]
    return float(node)


def _named(places: list[Place]) -> str:
    return ", ".join(".".join(str(key) for key in place) for place in places)
