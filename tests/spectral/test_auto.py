"""`auto` is a pure function, and the package stands alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import torch

import clipbench.spectral
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
    allowed = {"torch", "clipbench", *sys.stdlib_module_names}
    for file in Path(clipbench.spectral.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] in allowed, (file.name, name)
                assert not name.startswith("clipbench") or name.startswith("clipbench.spectral"), (file.name, name)
