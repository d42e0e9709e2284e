"""Where studies are kept: an Optuna storage, by default one SQLite file of the results folder."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from clipbench.errors import ConfigError, RecordError, Unwritable
from clipbench.runs.files import lock, set_aside

BUSY_SECONDS = 60  # SQLite's wait for another worker's write
PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")
ATTEMPTS = 5  # two workers may create the tables at the same moment


class SqliteStorage(RDBStorage):  # type: ignore[misc]  # Optuna is checked without its types
    """An SQLite file in which one worker alone wins a waiting trial.

    Optuna looks whether a trial is WAITING and then sets it RUNNING, which a database server makes one step (SELECT …
    FOR UPDATE). SQLite has no such clause, and two workers may both win; a lock file beside the database stops that.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
        self.lock = Path(str(make_url(url).database).removeprefix("file:") + ".lock")

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; at a time by one worker."""
        with lock(self.lock):
            return bool(super().set_trial_state_values(trial_id, state, values))


def open_storage(url: str | None, folder: Path, say: Callable[[str], None]) -> BaseStorage:
    """The storage at `url`, or `folder`/studies.db where that is None.

    A damaged studies.db is set aside: the records of the trials are found again, so nothing needs to be repeated.
    Raises ConfigError for a URL that does not work, RecordError for a folder that cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        return get_storage(_open(url))
    path = folder / "studies.db"
    with _opening(folder):
        try:
            return get_storage(_checked(path))
        except (DatabaseError, StorageInternalError) as error:
            if not _damaged(error):
                raise RecordError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
            aside = set_aside(path)
            say(f"{path} is damaged; moved to {aside.name}, trials are found again by their records")
            return get_storage(_checked(path))


def _checked(path: Path) -> RDBStorage:
    storage = SqliteStorage(f"sqlite:///{path}")
    for study in storage.get_all_studies():
        storage.get_all_trials(study._study_id, deepcopy=False)
    return storage


def _damaged(error: BaseException | None) -> bool:
    while error is not None:
        if any(words in str(error) for words in ("not a database", "malformed", "no such table", "disk image")):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """No other worker of this folder is opening the storage meanwhile."""
    path = folder / "open.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise Unwritable(f"paths.results must be a writable folder, got {folder} ({error.strerror})") from error
    with lock(path):
        yield


def _is_sqlite_file(url: str) -> bool:
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")


def _open(url: str) -> RDBStorage:
    shown = PASSWORD.sub("***", url)
    for attempt in range(ATTEMPTS):
        try:
            return SqliteStorage(url) if _is_sqlite_file(url) else RDBStorage(url)
        except ImportError as error:
            raise ConfigError(f"tuning.storage needs a database driver that is not installed, got {shown}") from error
        except (SQLAlchemyError, StorageInternalError) as error:
            if attempt == ATTEMPTS - 1 or not isinstance(error, DatabaseError | StorageInternalError):
                reason = str(error).splitlines()[0].replace(url, shown)
                raise ConfigError(
                    f"tuning.storage must be a database that can be opened, got {shown} ({reason})"
                ) from error
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError  # the loop returns or raises
