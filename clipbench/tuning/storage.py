"""Where studies are kept: an Optuna storage, by default one SQLite file of the results folder."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from clipbench.errors import ConfigError
from clipbench.records import RecordError, hold, set_aside

BUSY_SECONDS = 60  # SQLite's wait for another worker's write
PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")
ATTEMPTS = 5  # two workers may create the tables at the same moment


def open_storage(url: str | None, folder: Path, say: Callable[[str], None]) -> BaseStorage:
    """The storage at `url`, or `folder`/studies.db where that is None.

    A damaged studies.db is set aside: the records of the trials are found again, so nothing needs to be repeated.
    Raises ConfigError for a URL that does not work, RecordError for a folder that cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        return get_storage(_open(url))
    path = folder / "studies.db"
    with _turn(folder):
        try:
            return get_storage(_checked(path))
        except (DatabaseError, StorageInternalError) as error:
            if not _damaged(error):
                raise RecordError(f"cannot open {path}: {str(error).splitlines()[0]}") from error
            aside = set_aside(path)
            say(f"{path} is damaged; moved to {aside.name}, trials are found again by their records")
            return get_storage(_checked(path))


def _checked(path: Path) -> RDBStorage:
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    for study in storage.get_all_studies():
        storage.get_all_trials(study._study_id, deepcopy=False)
    return storage


def _damaged(error: BaseException | None) -> bool:
    while error is not None:
        if any(words in str(error) for words in ("not a database", "malformed", "no such table", "disk image")):
            return True
        error = error.__cause__ or error.__context__
    return False


class _turn:
    """Waits until no other worker of this folder is opening the storage."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "open.lock"

    def __enter__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while (handle := hold(self.path)) is None:
                time.sleep(0.02)
        except OSError as error:
            raise RecordError(
                f"paths.results must be a writable folder, got {self.path.parent} ({error.strerror})"
            ) from error
        self.handle = handle

    def __exit__(self, *raised: object) -> None:
        self.handle.close()


def _open(url: str) -> RDBStorage:
    options = {"connect_args": {"timeout": BUSY_SECONDS}} if url.startswith("sqlite") else {}
    shown = PASSWORD.sub("***", url)
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=options)
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
