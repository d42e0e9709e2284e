"""Files that are whole at every moment, and locks that die with their process.

A file is written aside, flushed to the disk and renamed, so that a reader (or a process started after a kill) sees
the old file or the new one, never a part. The aside name is the writing process's own and is never a link's target.
Locks are those of the library filelock (flock on Unix): the kernel releases them with the process.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clipbench.errors import RecordError

POLL = 0.01  # seconds between two looks at a lock that another process holds


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file aside, flush it to the disk, and rename it to `path`.

    Raises RecordError, with the earlier file untouched, where the disk is full or the folder is read-only.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.unlink(missing_ok=True)  # whatever lies there, a link too, is not written through
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        part.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {reason(error)}; what was there before is untouched") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def atomic_text(path: Path, text: str) -> None:
    """`atomic_write` of a text in UTF-8."""
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """Why a file could not be written or read, in the words of the operating system."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    return os.strerror(number) if number else str(error).splitlines()[0]


def set_aside(path: Path, word: str = "damaged") -> Path:
    """Rename a file (or folder) that cannot be used to `<name>.<word>-<k>` and return its new path."""
    k = 1
    while (target := path.with_name(f"{path.name}.{word}-{k}")).exists():
        k += 1
    os.replace(path, target)
    return target


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether the lock file at `path` is this block's, until the block ends or the process dies. Never waits."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` for the block, after waiting for whoever holds it now."""
    with FileLock(path).acquire(poll_interval=POLL):
        yield
