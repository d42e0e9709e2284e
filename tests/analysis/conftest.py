"""Collected results that several tests read, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench.analysis import collect
from tests.analysis.synthetic import write_calibration, write_comparison, write_tuning


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sgd (one of six seeds diverged), norm_clip and ps_clip, with tuning runs and without a calibration."""
    root = tmp_path_factory.mktemp("results")
    write_comparison(root, seeds=6)
    write_tuning(root)
    collect(root)
    return root


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, calibrated."""
    root = tmp_path_factory.mktemp("calibrated")
    write_comparison(root, seeds=6)
    collect(root)
    write_calibration(root)
    return root
