"""Optimizers by name: each takes the model and returns an optimizer over its trained parameters.

They know nothing of estimators and clippers, which have written `.grad` before. Weight decay acts after
clipping: SGD and Adam add weight_decay·θ to the gradient (coupled), AdamW and Muon subtract lr·weight_decay·θ.
"""

from clipbench.training.optimizers.airbench94 import airbench
from clipbench.training.optimizers.base import Optimizer
from clipbench.training.optimizers.matrix import MatrixOptimizer, matrix_sgd
from clipbench.training.optimizers.muons import muon
from clipbench.training.optimizers.plain import adam, adamw, sgd

__all__ = ["MatrixOptimizer", "Optimizer", "adam", "adamw", "airbench", "matrix_sgd", "muon", "sgd"]
