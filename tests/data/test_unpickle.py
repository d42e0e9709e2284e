"""The reader of data files: plain data come back, nothing else is built, and no bytes end the interpreter."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbench.data import unpickle

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 12)


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "file"
    path.write_bytes(content)
    return unpickle.read(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_data_come_back(protocol: int, tmp_path: Path) -> None:
    content = {
        "data": PIXELS,
        "labels": [0, 1, 300, 70000, -1, 2**40],
        "names": ["a", "é", "x" * 300],
        "f": (1.5, None),
    }
    found = read(tmp_path, pickle.dumps(content, protocol=protocol))
    assert np.array_equal(found.pop("data"), PIXELS)
    assert found == {key: value for key, value in content.items() if key != "data"}
    assert np.array_equal(read(tmp_path, pickle.dumps(PIXELS, protocol=protocol)), PIXELS)


def python2(content: str) -> bytes:
    """An array as Python 2 wrote it: its bytes as a string of that time, in the opcode BINSTRING."""
    raw = content.encode("latin1")
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return head + b"K\x01K\x02K\x03\x86" + kind + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb."


def test_the_official_files_spelling_is_read(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, python2("\x00\x01\x02\xfd\xfe\xff")), [[0, 1, 2], [253, 254, 255]])


HOSTILE = {
    "more bytes than there are": python2("\x00\x01\x02"),
    "fewer bytes than there are": python2("\x00" * 7),
    "a name": pickle.dumps(Path("x"), protocol=2),
    "an ordered dictionary": pickle.dumps(OrderedDict(a=1), protocol=2),
    "a decimal": pickle.dumps(Decimal(1), protocol=4),
    "numbers": pickle.dumps(np.arange(3.0), protocol=2),
    "objects": pickle.dumps(np.array([1, "a", None], dtype=object), protocol=2),
    "by columns": pickle.dumps(np.asfortranarray(PIXELS), protocol=2),
    "a codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "a state for a name": b"\x80\x02cnumpy\nndarray\n}X\x04\x00\x00\x00nameX\x05\x00\x00\x00arraysb.",
    "a class of the reader": b"\x80\x02cclipbench.data.unpickle\n_Reader\n.",
    "an array without a state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent object": b"\x80\x02U\x01aQ.",
    "a buffer": b"\x80\x05\x97.",
    "a huge buffer": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "a far place in the memo": b"\x80\x02}r\xff\xff\xff\xfe" + b"h\x00.",
    "an instance": b"\x80\x02(cnumpy\nndarray\noq\x00.",
    "nothing": b"",
    "no end": pickle.dumps({"data": PIXELS}, protocol=2)[:-1],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain_data_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path, HOSTILE[name])


def test_a_file_changes_nothing_for_the_next_one(tmp_path: Path) -> None:
    for content in HOSTILE.values():
        with pytest.raises(pickle.UnpicklingError):
            read(tmp_path, content)
    assert np.array_equal(read(tmp_path, pickle.dumps({"data": PIXELS}, protocol=2))["data"], PIXELS)


def fuzzed(folder: Path, seed: int, changes: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.data.fuzz", str(folder), str(seed), str(changes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts: dict[str, int] = json.loads(done.stdout)
    assert sum(counts.values()) == changes
    return counts


def test_no_changed_byte_ends_the_interpreter(tmp_path: Path) -> None:
    counts = fuzzed(tmp_path, 0, 3000)
    assert min(counts.values()) > 10, "the changes reach every end"


@pytest.mark.long
@pytest.mark.slow
def test_100000_changes_end_no_interpreter(tmp_path: Path) -> None:
    assert min(fuzzed(tmp_path, 1, 100_000).values()) > 500
