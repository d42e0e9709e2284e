"""Thresholds from measured norms: `measure` reads gradients over some batches, `propose` turns them into numbers."""

from clipbench.suggestion.measure import Norms, measure
from clipbench.suggestion.propose import Suggestion, propose, suggest

__all__ = ["Norms", "Suggestion", "measure", "propose", "suggest"]
