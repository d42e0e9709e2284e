"""Step times that can be compared: `interleaved` rounds; a calibration's `session`, `footprint` and `table`."""

from clipbench.extras import need

need("pandas", "pyarrow", "pydantic")
