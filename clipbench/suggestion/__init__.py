"""Thresholds from measured norms: `measured` reads gradients over some batches, `proposal` turns them into numbers."""

from clipbench.suggestion.measured import Norms, measure
from clipbench.suggestion.proposal import Suggestion, propose, suggest

__all__ = ["Norms", "Suggestion", "measure", "propose", "suggest"]
