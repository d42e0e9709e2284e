"""What every method must keep, whatever its rule: `examine` tries a method out and says what held.

`parts` finds the method's thresholds, `bench` trains it for a few steps on a small problem, `promises` are the rules.
"""

from clipbench.contract.bench import Bench
from clipbench.contract.promises import Finding, examine

__all__ = ["Bench", "Finding", "examine"]
