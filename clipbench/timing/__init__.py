"""Step times that can be compared: `interleaved` rounds; a calibration's `session`, `footprint` and `table`."""
