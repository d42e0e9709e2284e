"""One run from config to record: found and skipped, resumed or started, always leaving a whole record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clipbench.config.build import instantiate
from clipbench.errors import Interrupted, Stopped
from clipbench.runs import catalogue, signals
from clipbench.runs.job import Job, Row
from clipbench.runs.progress import Progress
from clipbench.runs.record import Record
from clipbench.runs.recorder import Outcome, Recorder, Say
from clipbench.runs.request import Request, request
from clipbench.tracking.tracker import NoTracker, Tracker

__all__ = ["Outcome", "Say", "Watch", "execute", "make_job"]
Watch = Callable[[list[Row]], bool]


def execute(config: Mapping[str, Any], say: Say = print, watch: Watch | None = None) -> Outcome:
    """Run `config` (resolved, plain containers), or find it finished.

    `watch` gets the new metric rows at every boundary; where it returns True the run stops as if interrupted.
    Raises ConfigError for what cannot run (nothing is written), RunLocked where another process is executing it,
    RecordError where the record cannot be written, Interrupted after SIGINT or SIGTERM, Stopped after `watch`.
    """
    wanted = request(config)
    if found := catalogue.find(wanted, say):
        return found
    job = make_job(wanted)
    record = Record(wanted.folder, say)
    with record.locked():
        if found := catalogue.find(wanted, say):  # another process may have finished it while this one loaded its data
            return found
        recorder = Recorder(wanted, record, catalogue.earlier(wanted, say), say)
        return _record(job, recorder, _tracker(wanted), watch)


def make_job(wanted: Request) -> Job:
    """The training or the study that `wanted` asks for. Raises ConfigError for what does not fit."""
    from clipbench.runs import fit
    from clipbench.training import setup
    from clipbench.training.trainer import Trainer

    if wanted.study:
        return setup.build_study(wanted.config, wanted.options, wanted.device)
    return Trainer(fit.build(wanted.config, wanted.options))


def _record(job: Job, recorder: Recorder, tracker: Tracker, watch: Watch | None) -> Outcome:
    """Carry out `job` and leave a finished record; a failed one (with its error) where an exception ends it."""
    try:
        recorder.resume(job)
        recorder.begin(job)
        tracker.start(recorder.info, recorder.config, job.rows)
        single = recorder.request.options.role == "single"  # a tuning says a line of each of its runs
        with signals.obeyed(job) as wish, Progress(job, lines=single) as progress:
            for rows in job.run():
                progress.advance(rows)
                tracker.log(rows)
                if watch is not None and watch(rows):
                    job.stop()
                if job.checkpoint_due:
                    recorder.save(job)
        if job.status == "running":
            recorder.save(job)
            wish.check()
            raise Stopped
        outcome = recorder.finish(job)
    except (Interrupted, Stopped):
        _end(tracker, "interrupted", recorder.say)
        raise
    except Exception as error:
        recorder.fail(job, error)
        _end(tracker, "failed", recorder.say)
        raise
    _end(tracker, job.status, recorder.say)
    return outcome


def _end(tracker: Tracker, status: str, say: Say) -> None:
    """Tell the tracker, and its user where to find what it has."""
    if line := tracker.finish(status):
        say(line)


def _tracker(wanted: Request) -> Tracker:
    logger = wanted.config.get("logger") or {}
    if "_target_" not in logger:
        return NoTracker()
    tracker: Tracker = instantiate(logger, "logger", results=wanted.options.paths.results)
    return tracker
