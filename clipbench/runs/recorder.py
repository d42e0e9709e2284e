"""Writes the record of one run, from its first file to its last. Where runs go together, each has one of its own."""

from __future__ import annotations

import contextlib
import copy
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from clipbench.config.environment import hidden
from clipbench.errors import RecordError
from clipbench.runs import checkpoint, provenance
from clipbench.runs.equal import same
from clipbench.runs.job import Report
from clipbench.runs.record import Record, State
from clipbench.runs.request import Request

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """How a run ended: `status` ok, diverged or failed; where its record is; `run.json`; and whether it was found."""

    status: str
    folder: Any
    info: dict[str, Any]
    found: bool


class Recorder:
    """The record of `request`, whose lock the caller holds; `earlier` is the state in which it was found.

    `resume`, then `begin`, then `save` as often as is due, then `finish` or `fail`.
    """

    def __init__(self, request: Request, record: Record, earlier: State, say: Say = print) -> None:
        self.request, self.record, self.earlier, self.say = request, record, earlier, say
        self.config = request.recorded
        self.info: dict[str, Any] = {}
        self.started = now()
        self.attempt = int(earlier.info.get("attempt") or 0) + 1
        self.fingerprint, self.continued_by = request.fingerprint, []  # type: tuple[str, list[str]]
        self._began = time.monotonic()
        self._wall_before = 0.0

    def resume(self, job: Report) -> None:
        """Let `job` go on from the record's checkpoint, where there is one that belongs to this run and code."""
        content = self.record.checkpoint() if self._may_continue() else None
        if content is None or not self._belongs(content):
            self.record.clean()
            return
        fresh = copy.deepcopy(job.state_dict())
        try:
            more = (content["wall"], content["started"], content["attempt"], content["fingerprint"])
            continued_by = list(content["continued_by"])
            job.load_state_dict(content["state"])
        except MemoryError:
            raise
        except Exception as error:  # whatever does not fit: it would fail at every repeat
            if "out of memory" in str(error):
                raise
            job.load_state_dict(fresh)
            self.record.refuse("checkpoint.pt", f"does not fit this run ({type(error).__name__})", "foreign")
            self.record.clean()
            return
        self._wall_before, self.started, self.attempt, self.fingerprint = more
        self.continued_by = continued_by
        if not any(same(self.request.fingerprint, one) for one in (self.fingerprint, *self.continued_by)):
            self.continued_by.append(self.request.fingerprint)
        self.say(f"resuming at step {job.done} of {job.steps}")

    def _may_continue(self) -> bool:
        if self.earlier.status == "absent":
            return False
        made_by, this = self.earlier.info.get("fingerprint"), self.request.fingerprint
        if not same(made_by, this) and self.request.options.stale == "rerun":
            self.say(f"stale: the record's code is {made_by}, this is {this}; running it anew (stale=rerun)")
            return False
        return self.earlier.status in ("running", "failed")

    def _belongs(self, content: Any) -> bool:
        """Whether a checkpoint is this run's; any other is set aside, and that is said."""
        if isinstance(content, Mapping):
            why = checkpoint.foreign(content, self.request.run_id)
        else:
            why = f"it holds a {type(content).__name__}"
        if why is not None:
            self.record.refuse("checkpoint.pt", f"is of another run or version ({why})", "foreign")
        return why is None

    def begin(self, report: Report) -> None:
        """Write what is known at the start."""
        self.info = self._first_info(report)
        self.record.write_config(self.config)
        self.record.write_info(self.info)

    def save(self, report: Report) -> None:
        """Write a checkpoint, and the rows so far."""
        content = checkpoint.pack(
            self.request.run_id, report.state_dict(), attempt=self.attempt, fingerprint=self.fingerprint,
            continued_by=self.continued_by, started=self.started, wall=self._wall(),
        )  # fmt: skip
        self.record.write_checkpoint(content)
        self.record.write_metrics(report.rows)

    def finish(self, report: Report) -> Outcome:
        """Write the finished record."""
        self.record.write_metrics(report.rows)
        self._close(report, report.status)
        self.record.write_info(self.info)
        self.record.clean()
        return Outcome(report.status, self.record.folder, self.info, False)

    def fail(self, report: Report, error: Exception) -> None:
        """Write that the run failed, and why. Never raises: the disk may be the very thing that failed."""
        self.info = self.info or self._first_info(report)
        self._close(report, "failed")
        self.info["error"] = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
        with contextlib.suppress(RecordError):
            self.record.write_info(self.info)
            self.record.write_error(hidden("".join(traceback.format_exception(error))))

    def _wall(self) -> float:
        return float(self._wall_before + time.monotonic() - self._began)

    def _first_info(self, report: Report) -> dict[str, Any]:
        options, config = self.request.options, self.config
        head, dirty = provenance.commit()
        groups = {name: _name(config.get(name)) for name in ("dataset", "model", "optimizer")}
        return {
            "run_id": self.request.run_id, "experiment": options.experiment, "attempt": self.attempt,
            "method": self.request.method, **groups, "seed": options.seed, "role": options.role, "trial": options.trial,
            "tuned": options.tuned if options.tuned.startswith("trial") else None,
            "status": "running", "error": None, "started": self.started, "finished": None,
            "versions": provenance.versions(), "commit": head, "dirty": dirty,
            "fingerprint": self.fingerprint, "continued_by": self.continued_by,
            "device": provenance.device_info(report.device), "precision": options.precision, "steps": report.steps,
            **report.about(), **provenance.machine(),
            "paths": {"results": hidden(options.paths.results), "data": hidden(options.data.root)},
        }  # fmt: skip

    def _close(self, report: Report, status: str) -> None:
        costs = report.costs()
        costs["seconds"] = {**costs.get("seconds", {}), "wall": self._wall()}
        ended = {"status": status, "finished": now(), "steps_done": report.done}
        self.info |= {**ended, **costs, **report.finals()}


def _name(group: Any) -> Any:
    """A group's name; where the environment gave the whole group, the reference to that."""
    return group.get("name") if isinstance(group, Mapping) else group


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
