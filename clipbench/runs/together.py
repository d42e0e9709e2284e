"""Many runs as one batched program that leaves one ordinary record each.

A batch is a list of members in a fixed order, kept in `<results>/runs/<experiment>/.together/<batch id>/` with the
batch's checkpoint for as long as it is unfinished: a process that is started after a kill rebuilds the same batch from
it, members that have ended included, and goes on bit for bit. A member's record is written when the member ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from clipbench.errors import RunLocked, Stopped
from clipbench.runs import catalogue, signals
from clipbench.runs.batch_file import BatchFile, unfinished
from clipbench.runs.job import Report
from clipbench.runs.kinship import groups, why_alone
from clipbench.runs.progress import Progress
from clipbench.runs.record import Record
from clipbench.runs.recorder import Outcome, Recorder, Say
from clipbench.runs.request import Request


class MemberRecorder(Recorder):
    """The record of one member; its wall seconds, too, are the program's divided by the members."""

    size = 1

    def went_on(self, seconds: float) -> None:
        """The program was `seconds` under way before this process."""
        self._wall_before = seconds
        self.record.clean()

    def _first_info(self, report: Report) -> dict[str, Any]:
        return super()._first_info(report) | {"together_fingerprint": self.request.together_fingerprint}

    def _wall(self) -> float:
        return super()._wall() / self.size


def run_together(requests: Sequence[Request], say: Say = print) -> list[Outcome]:
    """Carry out those of `requests` that are unfinished and can go together; the others are left to be run alone.

    The first request's option `together` says how many at most. Raises what a lone run raises; a batch that fails
    leaves failed records.
    """
    size = requests[0].options.together if requests else 1
    if size < 2:
        return []
    wanted = [request for request in requests if not catalogue.find(request, lambda _: None)]
    reasons = {why for request in wanted if (why := why_alone(request))}
    for why in sorted(reasons):
        say(f"together: some runs go alone: {why}")
    outcomes: list[Outcome] = []
    for file in unfinished(wanted, say):
        outcomes += _Batch(file.requests, file, say).go()
    left = [request for request in wanted if not _begun(request, say)]
    for members in groups(left, size):
        outcomes += _Batch(members, None, say).go()
    return outcomes


def _begun(request: Request, say: Say) -> bool:
    """Whether the run is finished by now, or has a checkpoint of its own and is better continued alone."""
    if catalogue.find(request, lambda _: None):
        return True
    if (request.folder / "checkpoint.pt").exists():
        say(f"together: {request.run_id} was begun alone and goes on alone")
        return True
    return False


class _Batch:
    """The runs of one batch, from their locks to their records."""

    def __init__(self, requests: Sequence[Request], file: BatchFile | None, say: Say) -> None:
        self.requests, self.file, self.say = list(requests), file, say
        self.outcomes: list[Outcome] = []
        self.recorders: dict[int, MemberRecorder] = {}  # of the members whose records this process writes

    def go(self) -> list[Outcome]:
        """Train the members and leave their records."""
        with ExitStack() as locks:
            self._lock(locks)
            if len(self.requests) < 2 or not self.recorders:
                return []
            self._train()
        return self.outcomes

    def _lock(self, locks: ExitStack) -> None:
        """Take the members' records. Of a new batch, what another process runs is left out; a stored one keeps it."""
        kept = []
        for request in self.requests:
            record = Record(request.folder, self.say)
            try:
                locks.enter_context(record.locked())
            except RunLocked as locked:
                self.say(f"left to another process: {locked}")
                if self.file is not None:
                    kept.append(request)
                continue
            if catalogue.find(request, lambda _: None):  # finished by now, or a member that ended before a kill
                if self.file is not None:
                    kept.append(request)
                continue
            self.recorders[len(kept)] = MemberRecorder(
                request, record, catalogue.earlier(request, self.say), lambda _: None
            )
            kept.append(request)
        self.requests = kept
        for recorder in self.recorders.values():
            recorder.size = len(kept)

    def _trainer(self) -> Any:
        """What trains the members as one program; None, said aloud, where they have to go alone."""
        from clipbench.runs.fit import check_schedule
        from clipbench.training.together.building import build_all
        from clipbench.training.together.members import Unbatchable
        from clipbench.training.together.trainer import TogetherTrainer

        names = {request.method for request in self.requests}
        self.say(f"together: {len(self.requests)} runs of {', '.join(sorted(names))} as one program")
        try:
            setups = build_all(self.requests)
            for setup in setups:
                check_schedule(setup)
            return TogetherTrainer(setups, self.say)
        except Unbatchable as why:
            self.say(f"together: these runs go alone: {why}")
            return None

    def _train(self) -> None:
        trainer = self._trainer()
        if trainer is None:
            return
        file = self.file or BatchFile.of(self.requests)
        file.write_members()
        try:
            began, before = time.monotonic(), 0.0
            if checkpoint := file.checkpoint(self.say):
                trainer.load_state_dict(checkpoint["state"])
                before = checkpoint["wall"]
                self.say(f"resuming at step {trainer.done} of {trainer.steps}")
            for place, recorder in self.recorders.items():
                recorder.went_on(before)
                recorder.begin(trainer.members[place])
            self._record_ended(trainer)
            with signals.obeyed(trainer) as wish, Progress(trainer) as progress:
                for rows in trainer.run():
                    progress.advance(rows)
                    self._record_ended(trainer)
                    if trainer.checkpoint_due:
                        file.save(trainer.state_dict(), before + time.monotonic() - began)
            if trainer.status == "running":
                file.save(trainer.state_dict(), before + time.monotonic() - began)
                wish.check()
                raise Stopped
        except Exception as error:
            if not isinstance(error, Stopped):
                self._fail(trainer, error)
            raise
        file.remove()

    def _record_ended(self, trainer: Any) -> None:
        """Finish the records of the members that have ended."""
        for place, recorder in list(self.recorders.items()):
            member: Report = trainer.members[place]
            if member.status != "running":
                self.outcomes.append(recorder.finish(member))
                del self.recorders[place]

    def _fail(self, trainer: Any, error: Exception) -> None:
        for place, recorder in self.recorders.items():
            recorder.fail(trainer.members[place], error)
