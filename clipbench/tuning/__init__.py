"""Equal tuning for every method: spaces, reference runs, the sequence of trials, workers, selection and final runs."""

from clipbench.extras import need

need("hydra", "omegaconf", "optuna", "scipy", "yaml")

from clipbench.tuning.finals import Finals
from clipbench.tuning.plan import Plan, plan
from clipbench.tuning.sequence import point
from clipbench.tuning.slots import Slots
from clipbench.tuning.space import Fixed, Measured, Range, Space, space
from clipbench.tuning.storage import open_storage
from clipbench.tuning.study import Choice, Study
from clipbench.tuning.worker import Result, Worker, summary

__all__ = [
    "Choice", "Finals", "Fixed", "Measured", "Plan", "Range", "Result", "Slots", "Space", "Study", "Worker",
    "open_storage", "plan", "point", "space", "summary",
]  # fmt: skip
