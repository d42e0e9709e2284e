"""The names at the top of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import clipbench
import clipbench.clipping
import clipbench.per_sample

NAMES = [
    *(set(clipbench.clipping.__all__) | set(clipbench.per_sample.__all__)),
    "SampleEma", "SampleQuantile", "SampleShare", "clip_factored", "clip_singular_values", "randomized_clip", "suggest",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name(name: str) -> None:
    assert name in dir(clipbench)
    found = getattr(clipbench, name)
    assert callable(found)
    assert found.__name__.removeprefix("clipbench.") == name  # the command `suggest` stands in for its function


def test_what_a_step_tells_has_one_name_for_a_clipper_and_one_for_samples() -> None:
    assert clipbench.ClipStats is clipbench.clipping.ClipStats
    assert clipbench.SampleClipStats is clipbench.per_sample.SampleClipStats
    assert clipbench.per_sample.ClipStats is clipbench.SampleClipStats, "its earlier name is still there"
    assert clipbench.ClipStats._fields == ("norm", "clipped_fraction")
    assert clipbench.SampleClipStats._fields == ("norms", "thresholds", "clipped_fraction", "dropped")


def test_dir_lists_nothing_that_is_not_there() -> None:
    listed = {name for name in dir(clipbench) if not name.startswith("_") and name[0].isupper()}
    assert set(NAMES) <= set(dir(clipbench))
    for name in listed - {"TYPE_CHECKING"}:
        getattr(clipbench, name)
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchClip'"):
        clipbench.NoSuchClip  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, clipbench; assert 'torch' not in sys.modules; dir(clipbench); assert 'torch' not in sys.modules; "
        "from clipbench import NormClip; assert 'torch' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
