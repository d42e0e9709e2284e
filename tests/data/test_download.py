"""Downloads from a real HTTP server on this machine: mirrors, resuming, checksums, waits."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipbench.data import DataUnavailable
from clipbench.data import download as download_module
from clipbench.data.download import digest, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several chunks
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `asked` are the Range headers it got."""

    def __init__(self, behaviour: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        behaviour = self.server.behaviour
        if behaviour == "missing":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and behaviour != "no range" else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = (b"x" * len(CONTENT) if behaviour == "wrong" else CONTENT)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behaviour == "slow":
            body = body[: len(body) // 2]
            for place in range(0, len(body), len(body) // 8):
                self.wfile.write(body[place : place + len(body) // 8])
                time.sleep(0.05)
        self.wfile.write(body[: 400_000 if behaviour == "cut" else len(body)] if behaviour != "slow" else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[type[Mirror]]:
    """A factory of mirrors which are shut down after the test."""
    made: list[Mirror] = []

    class Made(Mirror):
        def __init__(self, behaviour: str) -> None:
            super().__init__(behaviour)
            made.append(self)

    yield Made
    for server in made:
        server.shutdown()
        server.server_close()


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_downloads_into_a_new_folder_and_leaves_no_part(mirror: type[Mirror], tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "data.bin"
    fetch([mirror("good").url], target, "md5", MD5)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_goes_on_from_what_is_there(mirror: type[Mirror], tmp_path: Path) -> None:
    good, target = mirror("good"), tmp_path / "data.bin"
    part_of(target).write_bytes(CONTENT[:300_001])
    fetch([good.url], target, "md5", MD5)
    assert good.asked == ["bytes=300001-"]
    assert target.read_bytes() == CONTENT


def test_starts_again_where_a_mirror_knows_no_ranges(mirror: type[Mirror], tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(CONTENT[:5000])
    fetch([mirror("no range").url], target, "md5", MD5)
    assert target.read_bytes() == CONTENT


def test_a_complete_part_is_checked_and_taken(mirror: type[Mirror], tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(CONTENT)
    fetch([mirror("good").url], target, "md5", MD5)
    assert target.read_bytes() == CONTENT


def test_a_connection_that_breaks_off_is_continued_until_the_end(mirror: type[Mirror], tmp_path: Path) -> None:
    cut, target = mirror("cut"), tmp_path / "data.bin"
    fetch([cut.url], target, "md5", MD5)
    assert target.read_bytes() == CONTENT
    assert cut.asked == [None, "bytes=400000-", "bytes=800000-"]


def test_mirrors_are_tried_in_order(mirror: type[Mirror], tmp_path: Path) -> None:
    missing, wrong, good, unused = mirror("missing"), mirror("wrong"), mirror("good"), mirror("good")
    fetch([missing.url, wrong.url, good.url, unused.url], tmp_path / "data.bin", "md5", MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [len(server.asked) for server in (missing, wrong, good, unused)] == [1, 1, 1, 0]


def test_a_slow_mirror_is_left_for_the_next_which_goes_on(
    mirror: type[Mirror], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TRIAL_SECONDS", 0.1)
    monkeypatch.setattr(download_module, "SLOW", 1e12)
    monkeypatch.setattr(download_module, "CHUNK", 4096)
    slow, good, target = mirror("slow"), mirror("good"), tmp_path / "data.bin"
    fetch([slow.url, good.url], target, "md5", MD5)
    assert target.read_bytes() == CONTENT
    assert good.asked[0] is not None  # a range, not the whole


def test_wrong_everywhere_says_so_and_leaves_nothing(mirror: type[Mirror], tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.bin"
    with pytest.raises(DataUnavailable, match="wrong md5") as raised:
        fetch([mirror("wrong").url, mirror("missing").url], target, "md5", MD5)
    assert "HTTP 404" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not target.parent.exists()


def test_a_host_that_never_answers_costs_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(request: object, timeout: float) -> None:
        release.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(download_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(download_module.urllib.request, "urlopen", hang)
    start = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"no answer within 0\.2 s"):
        fetch(["http://a.invalid/x", "http://b.invalid/x"], tmp_path / "data.bin", "md5", MD5)
    release.set()
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["cifar", "text"])
def test_silent_mirrors_are_each_asked_once_and_stay_within_twenty_seconds(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = importlib.import_module(f"clipbench.data.{source}").MIRRORS
    allowed, asked, release = download_module.ANSWER_SECONDS, [], threading.Event()

    def hang(request: urllib.request.Request, timeout: float) -> None:
        asked.append(request.full_url)
        release.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(download_module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(download_module.urllib.request, "urlopen", hang)
    with pytest.raises(DataUnavailable, match=r"no answer within 0\.1 s"):
        fetch(mirrors, tmp_path / "data.bin", "md5", MD5)
    release.set()
    assert asked == list(mirrors)
    assert len(asked) * allowed < 20


def test_two_at_once_download_once(mirror: type[Mirror], tmp_path: Path) -> None:
    good, target = mirror("good"), tmp_path / "data.bin"
    threads = [threading.Thread(target=fetch, args=([good.url], target, "md5", MD5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert target.read_bytes() == CONTENT
    assert len(good.asked) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_folder_is_named(mirror: type[Mirror], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataUnavailable, match=r"cannot write .*file/data\.bin"):
        fetch([mirror("good").url], tmp_path / "file" / "data.bin", "md5", MD5)


def test_a_planted_link_is_not_written_through(mirror: type[Mirror], tmp_path: Path) -> None:
    good, victim = mirror("good"), tmp_path / "victim"
    for content in (b"whole", None):  # a file that is there, and one that would be made
        if content is not None:
            victim.write_bytes(content)
        target = tmp_path / "folder" / "file"
        target.parent.mkdir(exist_ok=True)
        part_of(target).unlink(missing_ok=True)
        part_of(target).symlink_to(victim)
        with pytest.raises(DataUnavailable, match=r"cannot write .*symbolic link"):
            fetch([good.url], target, "md5", MD5)
        assert (victim.read_bytes() if victim.exists() else None) == content
        victim.unlink(missing_ok=True)


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
    assert digest(tmp_path / "a", "sha256").startswith("ba7816bf8f01cfea")  # FIPS 180-2
