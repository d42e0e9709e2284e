"""How the gradient of a step is formed from its samples: whole batch, micro-batch by micro-batch, sample by sample."""

from clipbench.estimators.base import Estimate, Estimator
from clipbench.estimators.batch import Batch
from clipbench.estimators.micro_batch import MicroBatch
from clipbench.estimators.per_sample import PerSample
from clipbench.estimators.robust import MedianOfMicroBatches, MedoidOfMicroBatches
from clipbench.estimators.sample_thresholds import SampleEma, SampleQuantile, SampleShare

__all__ = [
    "Batch",
    "Estimate",
    "Estimator",
    "MedianOfMicroBatches",
    "MedoidOfMicroBatches",
    "MicroBatch",
    "PerSample",
    "SampleEma",
    "SampleQuantile",
    "SampleShare",
]
