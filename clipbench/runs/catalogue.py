"""What is finished already: in the results folder's records, or in its collected data."""

from __future__ import annotations

from clipbench.runs.identity import counted
from clipbench.runs.record import FINISHED, Record, State
from clipbench.runs.recorder import Outcome, Say
from clipbench.runs.request import Request


def settled(state: State, request: Request) -> bool:
    """Whether nothing is left to do for a record in `state`."""
    if state.status == "failed":
        return request.options.retry == "never"
    if state.status not in FINISHED:
        return False
    return request.options.stale == "keep" or state.info.get("fingerprint") == request.fingerprint


def find(request: Request, say: Say = print) -> Outcome | None:
    """The finished run of `request`, None where it is to be run. Raises RecordError for what cannot be read."""
    record = Record(request.folder, say)
    state = record.state()
    if not settled(state, request):
        return None
    if state.info.get("fingerprint") != request.fingerprint:
        say(f"made by other code and kept (stale=keep): {request.folder}")
    if state.status in FINISHED:
        record.heal(counted(request.config, "record"))
        record.clean()
    return Outcome(state.status, request.folder, state.info, True)
