"""Datasets: each names its Spec and its Task, and loads to Data on the device. One file each."""

from clipbench.data.base import Batch, Data, Dataset, DataUnavailable, Spec, Task
from clipbench.data.cifar import Cifar10, Cifar100
from clipbench.data.fineweb import FineWeb
from clipbench.data.heavy_tailed import HeavyTailed
from clipbench.data.tasks import Classification, NextToken, Regression
from clipbench.data.text import ShakespeareChar

__all__ = [
    "Batch",
    "Cifar10",
    "Cifar100",
    "Classification",
    "Data",
    "DataUnavailable",
    "Dataset",
    "FineWeb",
    "HeavyTailed",
    "NextToken",
    "Regression",
    "ShakespeareChar",
    "Spec",
    "Task",
]
