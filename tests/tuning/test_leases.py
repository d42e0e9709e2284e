"""Leases: one worker each, taken up again where it died, with and without a shared folder."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages._rdb.models import TrialModel
from optuna.trial import TrialState

from clipbench.tuning import leases as module
from clipbench.tuning import pulse
from clipbench.tuning.leases import Leases
from clipbench.tuning.storage import open_storage
from clipbench.tuning.study import open_study


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONTEST_SECONDS", 0.05)


def leases(tmp_path: Path, place: str = "here", count: int = 3) -> Leases:
    """A worker's view of the study, in a folder of its own for each `place`; as from another process."""
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db", tmp_path, print)
    return Leases(open_study(storage, "study", minimise=True), storage, tmp_path / place, count)


def tell(view: Leases, identity: int, value: float) -> None:
    view.study.tell(optuna.Trial(view.study, identity), value)


def test_a_trial_is_one_worker_s_at_a_time(tmp_path: Path) -> None:
    first, second, elsewhere = leases(tmp_path), leases(tmp_path), leases(tmp_path, "elsewhere")
    first.prepare(retry=True)
    with first.claim(0) as mine:
        assert mine is not None
        for other in (second, elsewhere, first):
            with other.claim(0) as theirs:
                assert theirs is None
        with second.claim(1) as theirs:
            assert theirs not in (None, mine)
        tell(first, mine, 1.5)
    assert second.open() == [1, 2]
    assert second.trials()[0].value == 1.5
    with second.claim(0) as theirs:
        assert theirs is None, "finished"


def test_two_workers_that_look_at_the_same_moment_do_not_both_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between Optuna's look at a waiting trial and its write there is time for a second look."""
    views = [leases(tmp_path, place) for place in ("here", "elsewhere")]
    views[0].prepare(retry=True)
    look = TrialModel.find_or_raise_by_id.__func__

    def slowly(cls: type, *arguments: object, for_update: bool = False) -> object:
        found = look(cls, *arguments, for_update=for_update)
        time.sleep(0.2 if for_update else 0.0)
        return found

    monkeypatch.setattr(TrialModel, "find_or_raise_by_id", classmethod(slowly))
    start, won = threading.Barrier(2), []

    def work(view: Leases) -> None:
        start.wait()
        with view.claim(0) as mine:
            won.append(mine)
            start.wait()

    threads = [threading.Thread(target=work, args=(view,)) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each is None for each in won) == [False, True]


@pytest.mark.parametrize("url", ["sqlite:///{}/a.db", "sqlite:///{}/a.db?timeout=5", "sqlite:///file:{}/a.db?uri=true"])
def test_every_sqlite_file_has_its_lock_beside_it(url: str, tmp_path: Path) -> None:
    storage = open_storage(url.format(tmp_path), tmp_path, print)
    view = Leases(open_study(storage, "study", minimise=True), storage, tmp_path / "here", 1)
    view.prepare(retry=True)
    with view.claim(0) as mine:
        assert mine is not None
    assert (tmp_path / "a.db.lock").exists()


def test_a_database_in_memory_needs_no_lock(tmp_path: Path) -> None:
    storage = open_storage("sqlite://", tmp_path, print)
    assert open_study(storage, "study", minimise=True).trials == []


def test_a_dead_worker_s_trial_is_taken_up_at_once_in_the_same_folder(tmp_path: Path) -> None:
    leases(tmp_path).prepare(retry=True)
    child = os.fork()
    if child == 0:
        with leases(tmp_path).claim(0):
            os._exit(9)
    os.waitpid(child, 0)
    view = leases(tmp_path)
    assert view.trials()[0].state is TrialState.RUNNING
    with view.claim(0) as mine:
        assert mine is not None
        tell(view, mine, 2.0)
    assert view.open() == [1, 2]


def test_elsewhere_a_dead_worker_is_known_by_its_silence(tmp_path: Path) -> None:
    dead, view = leases(tmp_path), leases(tmp_path, "elsewhere")
    dead.prepare(retry=True)
    with dead.claim(0):
        pass  # ends without a result, as after a kill; its folder cannot be seen from elsewhere
    clock = [0.0]
    view.monitor = pulse.Monitor(lambda: clock[0])
    for seconds in (0.0, 60.0, 119.0):
        clock[0] = seconds
        with view.claim(0) as mine:
            assert mine is None
    clock[0] = 121.0
    with view.claim(0) as mine:
        assert mine is not None


def test_a_living_worker_elsewhere_keeps_its_trial(tmp_path: Path) -> None:
    alive, view = leases(tmp_path), leases(tmp_path, "elsewhere")
    alive.prepare(retry=True)
    clock = [0.0]
    view.monitor = pulse.Monitor(lambda: clock[0])
    with alive.claim(0) as theirs:
        assert theirs is not None
        for beat in range(5):
            alive.set(theirs, "pulse", beat)
            clock[0] += 100.0
            with view.claim(0) as mine:
                assert mine is None


def test_of_two_heirs_the_later_signature_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, view, rival = leases(tmp_path), leases(tmp_path, "elsewhere"), leases(tmp_path, "third")
    dead.prepare(retry=True)
    with dead.claim(0) as identity:
        assert identity is not None
    view.patience = 0.0
    with view.claim(0) as mine:
        assert mine is None, "first sight"

    def meanwhile(seconds: float) -> None:
        rival.set(identity, "owner", f"{rival.place}:rival")

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    with view.claim(0) as mine:
        assert mine is None
    assert view.trials()[0].user_attrs["owner"].endswith("rival")


def test_the_beat_reaches_the_storage(tmp_path: Path) -> None:
    view = leases(tmp_path)
    view.prepare(retry=True)
    view.beat = 0.01
    with view.claim(0) as identity:
        assert identity is not None
        while view.trials()[0].user_attrs.get("pulse", 0) < 2:
            pass


def test_preparing_again_adds_nothing_and_more_trials_can_be_added(tmp_path: Path) -> None:
    view = leases(tmp_path)
    view.prepare(retry=True)
    leases(tmp_path, "elsewhere").prepare(retry=True)
    assert len(view.study.get_trials()) == 3
    more = leases(tmp_path, count=5)
    more.prepare(retry=True)
    assert sorted(more.trials()) == [0, 1, 2, 3, 4]
    assert len(more.study.get_trials()) == 5


@pytest.mark.parametrize(("retry", "expected"), [(True, [0, 1, 2]), (False, [1, 2])])
def test_a_failed_trial_gets_another_when_asked(retry: bool, expected: list[int], tmp_path: Path) -> None:
    view = leases(tmp_path)
    view.prepare(retry=True)
    with view.claim(0) as identity:
        assert identity is not None
        view.study.tell(optuna.Trial(view.study, identity), state=TrialState.FAIL)
    assert view.open() == [1, 2]
    view.prepare(retry=retry)
    assert view.open() == expected


def test_trials_that_two_workers_gave_the_same_index_are_one_attempt(tmp_path: Path) -> None:
    first, second = leases(tmp_path), leases(tmp_path, "elsewhere")
    nothing_yet = second.trials()
    first.prepare(retry=True)
    second.trials = lambda: nothing_yet  # type: ignore[method-assign]
    second.prepare(retry=True)
    del second.trials
    assert len(first.study.get_trials()) == 6
    with second.claim(0) as identity:
        assert identity is not None
        second.study.tell(optuna.Trial(second.study, identity), state=TrialState.FAIL)
    assert first.open() == second.open() == [1, 2], "the twin of a failed trial is not a second chance"
    first.prepare(retry=True)
    assert first.open() == [0, 1, 2]


def test_an_observer_judges_by_change_and_not_by_any_clock() -> None:
    clock = [50.0]
    monitor = pulse.Monitor(lambda: clock[0])
    assert not monitor.silent(1, "a", 10)
    clock[0] = 59.0
    assert not monitor.silent(1, "a", 10)
    assert not monitor.silent(1, "b", 10)
    clock[0] = 20.0  # set back
    assert not monitor.silent(1, "b", 10)
    clock[0] = 70.0
    assert monitor.silent(1, "b", 10)
