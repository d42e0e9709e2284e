"""Reading parquet: what pandas reads, and no thread that outlives the call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipbench.runs.parquet import read_arrow, read_frame

FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, np.nan, 2.0], "c": ["x", None, "z"]}, index=[4, 5, 6])
THREADS = """
import sys, threading
from pathlib import Path
from clipbench.runs.parquet import read_arrow, read_frame
path = Path(sys.argv[1])
import pyarrow.parquet
before = len(list(Path("/proc/self/task").iterdir()))
for _ in range(3):
    read_frame(path), read_arrow(path.read_bytes(), ["a"])
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


def test_frames_are_those_of_pandas(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read_frame(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "a.parquet"))
    ours = read_frame(tmp_path / "a.parquet", types_mapper=pd.ArrowDtype)
    pd.testing.assert_frame_equal(ours, pd.read_parquet(tmp_path / "a.parquet", dtype_backend="pyarrow"))


def test_columns_and_contents(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    assert read_arrow(content, ["b", "a"]).to_pylist() == read_arrow(tmp_path / "a.parquet", ["b", "a"]).to_pylist()
    assert read_arrow(content).column("a").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_damaged_file_is_an_error(tmp_path: Path, keep: int) -> None:
    FRAME.to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[:keep])
    with pytest.raises((OSError, ValueError)):
        read_frame(tmp_path / "b.parquet")
    with pytest.raises((OSError, ValueError)):
        read_arrow(content[:keep])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads where the system lists them")
def test_no_thread_reads_ahead(tmp_path: Path) -> None:
    """Such a thread aborts the process at its end, once in many times (see the module)."""
    FRAME.to_parquet(tmp_path / "a.parquet")
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"]
