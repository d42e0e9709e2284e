"""Resumable downloads: several mirrors in order, bounded waits, one line of progress on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from clipbench.data.base import DataUnavailable

ANSWER_SECONDS = 6.0  # to look the name up, connect and get the headers; three mirrors stay below 20 s
STALL_SECONDS = 30.0  # between two reads of a transfer that has begun
TRIAL_SECONDS = 15.0  # after these a mirror slower than SLOW is left, as long as there is another
SLOW = 200_000  # bytes per second
CHUNK = 1 << 18


class _TooSlow(OSError):
    pass


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal checksum of a file, by "md5" (where that is all the source gives) or "sha256"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def fetch(urls: Sequence[str], target: Path, algorithm: str, checksum: str) -> None:
    """Download `target` from the first of `urls` that delivers it with the right checksum.

    What has arrived stays in `<target>.part`, and the next mirror, or the next call, goes on from there (HTTP
    range). Processes that want the same file wait for the one that downloads it. The last mirror is also the
    last
    resort: it is not left for being slow. Raises DataUnavailable with the last reason of every mirror.
    """
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if not target.exists():  # otherwise another process was faster
                _from_any(urls, file, part, algorithm, checksum)
                os.fsync(file.fileno())
                os.replace(part, target)
            elif _size(file) == 0:
                part.unlink()
    except OSError as error:
        raise DataUnavailable(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty, or never made
                folder.rmdir()


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """`part` opened for appending, for one process at a time; removed if it is empty and the body failed."""
    while True:
        with open(part, "ab", opener=_no_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _same_file(part, file):  # who held the lock renamed or removed it meanwhile
                continue
            try:
                yield file
            except DataUnavailable:
                if _size(file) == 0:
                    part.unlink()
                raise
            return


def _no_link(path: str, flags: int) -> int:
    """Opens a file, and no link that somebody else has put in its place."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _from_any(urls: Sequence[str], file: BinaryIO, part: Path, algorithm: str, checksum: str) -> None:
    reasons: dict[str, str] = {}
    while True:
        before = _size(file)
        for number, url in enumerate(urls, start=1):
            host = url.split("/")[2]
            try:
                _transfer(url, file, last=number == len(urls))
                file.flush()
                if digest(part, algorithm) == checksum:
                    return
                file.truncate(0)
                reasons[host] = f"wrong {algorithm}"
            except (OSError, http.client.HTTPException) as error:
                reasons[host] = _reason(error)
        if _size(file) <= before:  # a whole round without progress
            raise DataUnavailable("; ".join(f"{host}: {reason}" for host, reason in reasons.items()))


def _transfer(url: str, file: BinaryIO, last: bool) -> None:
    """Append to `file` what is missing of it. Raises OSError or HTTPException where that ends early."""
    have = _size(file)
    headers = {"User-Agent": "clipbench", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = _answer(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here: the checksum decides
        raise
    with response:
        if have and response.status != http.client.PARTIAL_CONTENT:  # this mirror starts again
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _copy(response, file, have, total, last, url.split("/")[2])
    if total is not None and _size(file) < total:
        raise OSError("connection closed early")


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, last: bool, host: str
) -> None:
    from tqdm import tqdm  # only a download needs it

    start, received = time.monotonic(), 0
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=host, disable=not sys.stderr.isatty()) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
            seconds = time.monotonic() - start
            if not last and seconds > TRIAL_SECONDS and received < SLOW * seconds:
                raise _TooSlow(f"only {received / seconds / 1000:.0f} kB/s")


def _answer(request: urllib.request.Request) -> http.client.HTTPResponse:
    """urlopen within ANSWER_SECONDS; its own time-out does not bound the look-up of the host's name."""
    result: list[http.client.HTTPResponse | BaseException] = []
    expired = threading.Event()

    def call() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=STALL_SECONDS)
        except BaseException as error:
            result.append(error)
            return
        result.append(response)
        if expired.is_set():
            response.close()

    worker = threading.Thread(target=call, daemon=True)
    worker.start()
    worker.join(ANSWER_SECONDS)
    expired.set()
    if not result:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _size(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(inner, "strerror", None) or inner)
