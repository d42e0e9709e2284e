"""What every method must keep, whatever its rule: `examine` tries a method out and says what held.

`parts` finds the method's thresholds, `bench` trains it for a few steps on a small problem, `promises` are the rules.
`methods`, `models` and `datasets` try out classes from outside (`python -m clipbench.check`).
"""

from clipbench.extras import need

need("hydra", "omegaconf", "pydantic", "yaml")

from clipbench.contract.bench import Bench
from clipbench.contract.datasets import examine_dataset
from clipbench.contract.methods import examine_outside, method_of
from clipbench.contract.models import examine_model
from clipbench.contract.promises import Finding, examine

__all__ = ["Bench", "Finding", "examine", "examine_dataset", "examine_model", "examine_outside", "method_of"]
