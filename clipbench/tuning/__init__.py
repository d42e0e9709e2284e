"""Equal tuning for every method: spaces, reference runs, the sequence of trials, workers, selection and final runs."""

from clipbench.extras import need

need("hydra", "omegaconf", "optuna", "scipy", "yaml")

from clipbench.tuning.finals import Finals
from clipbench.tuning.leases import Leases
from clipbench.tuning.plan import Plan, plan
from clipbench.tuning.sequence import point
from clipbench.tuning.space import Fixed, Range, Space, ToMeasure, space
from clipbench.tuning.storage import open_storage
from clipbench.tuning.study import Choice, Study
from clipbench.tuning.worker import Result, Worker, summary

__all__ = [
    "Choice", "Finals", "Fixed", "Leases", "Plan", "Range", "Result", "Space", "Study", "ToMeasure", "Worker",
    "open_storage", "plan", "point", "space", "summary",
]  # fmt: skip
