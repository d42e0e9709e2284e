"""Calibration: step times measured side by side, memory and set-up apart, and the table they are kept in."""

from clipbench.calibration.footprint import Footprint, footprint
from clipbench.calibration.session import Session, Timing, measure
from clipbench.calibration.table import alone, markdown, rows, store

__all__ = ["Footprint", "Session", "Timing", "alone", "footprint", "markdown", "measure", "rows", "store"]
