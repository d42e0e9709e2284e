"""Reading parquet in the calling thread alone.

pandas hands pyarrow an open Python file, and pyarrow lets threads of its own read ahead. Such a thread may still hold
one of the file's buffers when the interpreter ends; it then asks for the interpreter's lock, and the process dies with
SIGABRT and "terminate called without an active exception" after all its work was done: one in 15 sweeps on two busy
cores (apache/arrow issues 34314 and 49942). Here no other thread touches a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def read_arrow(source: Path | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a file, or in a file's content; `columns` of it, all where None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.BufferReader(source) if isinstance(source, bytes) else pa.OSFile(str(source)) as file:
        whole = pq.ParquetFile(file, pre_buffer=False)
        return whole.read(columns=None if columns is None else list(columns), use_threads=False)


def read_frame(source: Path, **options: Any) -> pd.DataFrame:
    """`pandas.read_parquet` of a local file. options: those of `pyarrow.Table.to_pandas`."""
    return read_arrow(source).to_pandas(use_threads=False, **options)
