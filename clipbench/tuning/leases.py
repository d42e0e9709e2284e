"""Trials of an Optuna study, each leased to exactly one worker, and taken up again where its worker died.

Index k is the k-th trial of the study's budget; Optuna numbers its own trials otherwise, and keeps the index as the
attribute `slot`. Two things keep workers apart. Workers that share a folder hold a file lock for as long as they work
on an index: the kernel releases it with the process, so whoever gets the lock of a RUNNING trial of this folder knows
that its worker is dead. Workers that share nothing but the storage are told apart by the storage's own change from
WAITING to RUNNING, which only one of them can make, and by a count that a living worker keeps increasing (`pulse.py`).
Two of them may give an index a trial at the same moment; the attribute `attempt` tells such a twin, which is left
alone, from the trial that follows a failed one.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from clipbench.runs.files import atomic_text, lock, try_lock
from clipbench.tuning import pulse

INDEX = "slot"  # the attribute is called so in the storages that there are
CONTEST_SECONDS = 2.0  # after signing a dead worker's trial: if somebody else signs it too, the later one has it


class Leases:
    """Leases of the indices 0 … `count` − 1 of `study`; `folder` holds the locks of the workers that share it."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, folder: Path, count: int) -> None:
        self.study, self.storage, self.folder, self.count = study, storage, folder, count
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.place = _place(folder)
        self.monitor = pulse.Monitor()
        self.beat, self.patience = pulse.BEAT, pulse.PATIENCE

    def prepare(self, retry: bool) -> None:
        """Make sure that every index has a trial; with `retry`, a failed one gets a new trial."""
        with lock(self.folder / "prepare.lock"):
            have = self.trials()
            for index in range(self.count):
                if index not in have:
                    self._add(index, 0)
                elif retry and have[index].state is TrialState.FAIL:
                    self._add(index, _attempt(have[index]) + 1)

    def _add(self, index: int, attempt: int) -> None:
        waiting = create_trial(state=TrialState.WAITING, user_attrs={INDEX: index, "attempt": attempt})
        self.storage.create_new_trial(self.study_id, template_trial=waiting)

    def trials(self) -> dict[int, FrozenTrial]:
        """The trial of each index: of the last attempt, the first."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.storage.get_all_trials(self.study_id, deepcopy=False):
            index = trial.user_attrs.get(INDEX)
            if index is None or index >= self.count:
                continue
            if index not in found or _attempt(trial) > _attempt(found[index]):
                found[index] = trial
        return found

    def open(self) -> list[int]:
        """The indices whose trials are not finished."""
        have = self.trials()
        return [index for index in range(self.count) if index not in have or not have[index].state.is_finished()]

    @contextlib.contextmanager
    def claim(self, index: int) -> Iterator[int | None]:
        """The id of the trial at `index`, this worker's alone until the block ends; None where it is not to be had.

        A trial that is not told a result before the block ends is left to be claimed again.
        """
        with try_lock(self.folder / f"{index}.lock") as mine:
            if not mine:
                yield None
                return
            trial = self.trials().get(index)
            identity = None if trial is None else self._identity(trial)
            if trial is None or identity is None or not self._take(trial, identity):
                yield None
                return
            with pulse.beating(lambda n: self.set(identity, "pulse", n), self.beat):
                yield identity

    def _identity(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)

    def set(self, identity: int, key: str, value: object) -> None:
        """Give a trial an attribute."""
        self.storage.set_trial_user_attr(identity, key, value)

    def _take(self, trial: FrozenTrial, identity: int) -> bool:
        """Make a trial whose lock this worker holds its own."""
        signature = f"{self.place}:{uuid.uuid4().hex}"
        if trial.state is TrialState.WAITING:
            mine = self.storage.set_trial_state_values(identity, TrialState.RUNNING)
            if mine:
                self.set(identity, "owner", signature)
            return mine
        if trial.state is not TrialState.RUNNING:
            return False
        owner = trial.user_attrs.get("owner")
        if owner is not None and str(owner).partition(":")[0] == self.place:
            self.set(identity, "owner", signature)
            return True
        return self._inherit(identity, signature)

    def _inherit(self, identity: int, signature: str) -> bool:
        """Take up the trial of a worker elsewhere that gives no sign of life."""
        attributes = self.storage.get_trial_user_attrs(identity)
        owner = attributes.get("owner")
        patience = self.patience if owner is not None else min(self.patience, pulse.UNOWNED_PATIENCE)
        if not self.monitor.silent(identity, (owner, attributes.get("pulse")), patience):
            return False
        self.set(identity, "owner", signature)
        time.sleep(CONTEST_SECONDS)
        return bool(self.storage.get_trial_user_attrs(identity).get("owner") == signature)


def _attempt(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 0))


def _place(folder: Path) -> str:
    """A name for the folder that no other folder has, however it is mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "place"
    with lock(folder / "prepare.lock"):
        if not path.exists():
            atomic_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")
