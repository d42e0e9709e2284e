"""What is finished already: in the results folder's records, or in its collected data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipbench.runs.archive import data_file, places, published
from clipbench.runs.equal import same
from clipbench.runs.record import FINISHED, Record, State
from clipbench.runs.recorder import Outcome, Say
from clipbench.runs.request import Request


def settled(state: State, request: Request) -> bool:
    """Whether nothing is left to do for a record in `state`."""
    if state.status == "failed":
        return request.options.retry == "never"
    if state.status not in FINISHED:
        return False
    return request.options.stale == "keep" or same_code(state.info, request)


def same_code(info: Mapping[str, Any], request: Request) -> bool:
    """Whether a record was made by code that counts as the request's; by the batched program's, where it was that."""
    if not same(info.get("fingerprint"), request.fingerprint):
        return False
    return info.get("together") is None or same(info.get("together_fingerprint"), request.together_fingerprint)


class Known(NamedTuple):
    """What is known of a run: its `state`, and the `place` where it lies finished, None where it is to be run."""

    state: State
    place: Path | None

    @property
    def travelled(self) -> bool:
        """Whether it was found in collected data."""
        return self.place is not None and self.place.suffix == ".parquet"


def collected(request: Request) -> Known:
    """What collected data say of the run: one's own, or those that came with an installed package.

    Unfinished runs are collected too, and count as absent. Of several, one that needs not be run again is taken.
    """
    found = []
    for results in places(request.results):
        info = published(results, request.options.experiment, request.run_id)
        finished = info is not None and info["status"] in FINISHED
        state = State(str(info["status"]) if info and finished else "absent", info or {})
        found.append(Known(state, data_file(results, request.options.experiment)))
    return max(found, key=lambda known: (settled(known.state, request), _attempt(known.state)))


def look(request: Request, say: Say = print) -> Known:
    """What the run's own record says of it, or else results/data. RecordError for what cannot be read."""
    state = Record(request.folder, say).state()
    if settled(state, request):
        return Known(state, request.folder)
    known = collected(request)
    if settled(known.state, request) and _attempt(known.state) >= _attempt(state):
        return known
    return Known(state, None)


def find(request: Request, say: Say = print) -> Outcome | None:
    """The finished run of `request`, None where it is to be run; a finished record is mended where it is damaged."""
    state, place = known = look(request, say)
    if place is None:
        return None
    if not same_code(state.info, request):
        say(f"made by other code and kept (stale=keep): {place}")
    if not known.travelled and state.status in FINISHED:
        Record(request.folder, say).tidy(request.recorded)
    return Outcome(state.status, place, state.info, True)


def earlier(request: Request, say: Say = print) -> State:
    """The state that a new attempt follows: the record's own, with the number of the latest attempt known."""
    state, known = Record(request.folder, say).state(), collected(request).state
    if state.status == "absent" and known.status in FINISHED:
        made_by = known.info.get("fingerprint")
        say(f"stale: the collected run's code is {made_by}, this is {request.fingerprint}; running it anew")
    return State(state.status, {**state.info, "attempt": max(_attempt(state), _attempt(known))})


def _attempt(state: State) -> int:
    return int(state.info.get("attempt") or 0)
