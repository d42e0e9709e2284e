"""`auto` is a pure function, and the package stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys

import torch

from clipbench.spectral import as_matrix, choose, matrix_shape


def test_cpu_takes_exact_and_a_gpu_takes_products() -> None:
    for adaptive in (False, True):
        assert choose((384, 1728), torch.float32, "cpu", adaptive) == "exact"
        assert choose((384, 1728), torch.float32, "cuda", adaptive) == "newton_schulz"
        assert choose((384, 1728), torch.bfloat16, "cuda", adaptive) == "newton_schulz"
        assert choose((384, 1728), torch.float64, "cuda", adaptive) == "exact"


def test_tensors_become_matrices_as_in_the_paper() -> None:
    assert matrix_shape((64, 3, 11, 11)) == (64, 363)
    assert matrix_shape((7,)) == (7, 1)
    assert matrix_shape(()) == (1, 1)
    convolution = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(as_matrix(convolution)[1], torch.arange(12.0, 24.0))


def test_the_kernels_import_only_torch() -> None:
    code = "import sys, clipbench.spectral; print([m for m in sys.modules if m.startswith('clipbench.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name.startswith("clipbench.spectral") for name in ast.literal_eval(loaded))
