"""One run from config to record: found and skipped, resumed or started, always leaving a whole record."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from clipbench.config import schema
from clipbench.errors import Interrupted, Stopped
from clipbench.runs import provenance
from clipbench.runs.record import Record, RecordError, Row, State, recorded, run_id
from clipbench.runs.work import Work, build_work

Say = Callable[[str], None]
Watch = Callable[[list[Row]], bool]


class Outcome(NamedTuple):
    """How a run ended: `status` ok, diverged or failed, its record's folder, `run.json`, and whether it was found."""

    status: str
    folder: Path
    info: dict[str, Any]
    found: bool


def locate(config: Mapping[str, Any], options: schema.Options) -> Path:
    """The folder of the config's record; the same config, device type and experiment give the same folder."""
    from clipbench.training.setup import pick_device

    identity = run_id(schema.used(config), pick_device(options.device).type)
    return Path(options.paths.results) / "runs" / options.experiment / identity


def settled(state: State, options: schema.Options, fingerprint: str) -> bool:
    """Whether nothing is left to do for a record in `state`."""
    if state.status == "failed":
        return options.retry == "never"
    if state.status not in ("ok", "diverged"):
        return False
    return options.stale == "keep" or state.info.get("fingerprint") == fingerprint


def execute(config: Mapping[str, Any], say: Say = print, watch: Watch | None = None) -> Outcome:
    """Run `config` (resolved, plain containers), or find it finished.

    `watch` gets the new metric rows at every boundary; where it returns True the run stops as if interrupted.
    Raises ConfigError for what cannot run (nothing is written), RunLocked where another process is executing it,
    RecordError where the record cannot be written, Interrupted after SIGINT or SIGTERM, Stopped after `watch`.
    """
    options = schema.check(config)
    config = schema.used(config)
    folder = locate(config, options)
    record = Record(folder, say)
    code = provenance.fingerprint(provenance.foreign_targets(config))
    state = record.state()
    if settled(state, options, code):
        return _found(state, folder, code, say)

    work = build_work(config, options)
    with record.locked():
        state = record.state()  # another process may have finished it while this one loaded its data
        if settled(state, options, code):
            return _found(state, folder, code, say)
        return _Execution(config, options, work, record, say, watch).go(_usable(state, options, code, say))


def _found(state: State, folder: Path, code: str, say: Say) -> Outcome:
    if state.info.get("fingerprint") != code:
        say(f"made by other code and kept (stale=keep): {folder}")
    return Outcome(state.status, folder, state.info, True)


def _usable(state: State, options: schema.Options, code: str, say: Say) -> bool:
    """Whether an unfinished record's checkpoint may be continued."""
    if state.status == "absent":
        return False
    same = state.info.get("fingerprint") == code
    if not same and options.stale == "rerun":
        made_by = state.info.get("fingerprint")
        say(f"stale: the record's code is {made_by}, this is {code}; running it anew (stale=rerun)")
        return False
    return state.status in ("running", "failed")


class _Execution:
    """The part of a run that holds the record's lock."""

    def __init__(
        self,
        config: Mapping[str, Any],
        options: schema.Options,
        work: Work,
        record: Record,
        say: Say,
        watch: Watch | None,
    ) -> None:
        self.config = recorded(config)
        self.options, self.work = options, work
        self.record, self.say, self.watch = record, say, watch
        self.started = time.monotonic()
        self.wall_before = 0.0
        self.code = provenance.fingerprint(provenance.foreign_targets(config))
        self.signal_number: int | None = None
        self.info = self._first_info()
        self.tracker = self._tracker()

    def go(self, resume: bool) -> Outcome:
        """Do the work and leave a finished record; a failed one (with its error) where an exception ends the run."""
        try:
            self._restore(resume)
            self.record.write_config(self.config)
            self.record.write_info(self.info)
            self.tracker.start(self.info, self.config)
            with self._signals(), self._progress() as advance:
                for rows in self.work.run():
                    advance()
                    self.tracker.log(rows)
                    if self.watch is not None and self.watch(rows):
                        self.work.stopping = True
                    if self.work.save_due:
                        self._save()
            if self.work.stopping and self.work.status == "running":
                self._save()
                raise Stopped if self.signal_number is None else Interrupted(self.signal_number)
            return self._finish()
        except (Interrupted, Stopped):
            self.tracker.finish("interrupted")
            raise
        except Exception as error:
            self._fail(error)
            raise

    def _restore(self, resume: bool) -> None:
        checkpoint = self.record.checkpoint() if resume else None
        if checkpoint is None:
            self.record.drop_checkpoint()
            return
        self.work.load_state_dict(checkpoint["work"])
        self.wall_before = checkpoint["wall"]
        self.info["started"] = checkpoint["started"]
        self.say(f"resuming at step {self.work.done} of {self.work.steps}")

    def _save(self) -> None:
        wall = self.wall_before + time.monotonic() - self.started
        content = {"work": self.work.state_dict(), "wall": wall, "started": self.info["started"]}
        self.record.write_checkpoint(content)
        self.record.write_metrics(self.work.rows)

    def _finish(self) -> Outcome:
        self.record.write_metrics(self.work.rows)
        self._close(self.work.status)
        self.record.write_info(self.info)
        self.record.drop_checkpoint()
        self.tracker.finish(self.work.status)
        return Outcome(self.work.status, self.record.folder, self.info, False)

    def _fail(self, error: Exception) -> None:
        self._close("failed")
        self.info["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        with contextlib.suppress(RecordError):  # the disk may be the very thing that failed
            self.record.write_info(self.info)
            self.record.write_error(error)
        self.tracker.finish("failed")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a wish to stop at the next step; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def wish(number: int, frame: FrameType | None) -> None:
            self.signal_number, self.work.stopping = number, True
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, wish)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        """A progress bar on a terminal, nothing elsewhere; it moves where the clock stands still anyway."""
        from tqdm import tqdm

        bar = tqdm(total=self.work.steps, initial=self.work.done, unit="step", disable=not sys.stderr.isatty())

        def advance() -> None:
            bar.update(self.work.done - bar.n)
            losses = [row["value"] for row in self.work.rows[-12:] if row["metric"] == "loss"]
            if losses:
                bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)

        with bar:
            yield advance

    def _tracker(self) -> Any:
        from clipbench.tracking.tracker import NoTracker

        if "_target_" not in (self.config.get("logger") or {}):
            return NoTracker()
        return schema.instantiate(self.config["logger"], "logger", results=self.options.paths.results)

    def _first_info(self) -> dict[str, Any]:
        config, options, work = self.config, self.options, self.work
        head, dirty = provenance.commit()
        names = {group: config.get(group, {}).get("name") for group in ("method", "dataset", "model", "optimizer")}
        if "study" in config:
            names["method"] = config["study"].get("name")  # what tables and sweeps call the run by
        return {
            "run_id": self.record.folder.name, "experiment": options.experiment, **names,
            "seed": options.seed, "role": options.role, "trial": options.trial,
            "status": "running", "error": None, "started": _now(), "finished": None,
            "versions": provenance.versions(), "commit": head, "dirty": dirty,
            "fingerprint": self.code, "device": provenance.device_info(work.device),
            "precision": work.precision, "steps": work.steps, "samples_per_step": work.samples_per_step,
            "parameters": work.parameters, "data": work.data,
            **provenance.machine(), "paths": {"results": options.paths.results, "data": options.data.root},
        }  # fmt: skip

    def _close(self, status: str) -> None:
        clock, rows = self.work.clock, self.work.rows
        wall = self.wall_before + time.monotonic() - self.started
        self.info |= {
            "status": status, "finished": _now(), "steps_done": self.work.done,
            "seconds": {"train": clock.train, "setup": clock.setup, "evaluation": clock.evaluation, "wall": wall},
            "train_step_seconds": clock.step_seconds(), "peak_memory_bytes": _peak_memory(self.work.device),
            "final": final_metrics(rows), "best": best_metrics(rows),
        }  # fmt: skip


def final_metrics(rows: list[Row]) -> dict[str, float]:
    """The last value of every metric, by "<split>_<metric>"; per-layer figures are left to the rows."""
    return {f"{row['split']}_{row['metric']}": row["value"] for row in rows if "/" not in row["metric"]}


def best_metrics(rows: list[Row]) -> dict[str, float]:
    """The best finite validation value of every metric: smallest loss, largest of the others."""
    best: dict[str, float] = {}
    for row in rows:
        name, value = f"{row['split']}_{row['metric']}", row["value"]
        if row["split"] != "validation" or not math.isfinite(value):
            continue
        pick = min if row["metric"] == "loss" else max
        best[name] = pick(best.get(name, value), value)
    return best


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory(device: Any) -> int:
    """Largest memory in use so far in bytes: on the device for CUDA, resident in this process for a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
