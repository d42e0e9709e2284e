"""One of a thing is not several."""

from __future__ import annotations

import pytest

from clipbench.wording import amount


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), ("1", "1 run"), ("1, 2", "1, 2 runs"), (21, "21 runs")],
)
def test_an_amount(number: int | str, text: str) -> None:
    assert amount(number, "run") == text
