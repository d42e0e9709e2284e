"""The rates' statements on published runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench.analysis.claims import claims
from clipbench.analysis.claims.judged import statements_of
from clipbench.analysis.claims.source import Missing, Source

RESULTS = Path(__file__).parents[3] / "results"


@pytest.mark.parametrize("name", ["P1.a", "P2.b"])
def test_every_statement_has_a_text_of_its_own(name: str) -> None:
    """Matrices have noise of a fixed and of a random direction, which a table and a figure must tell apart."""
    (claim,) = [claim for claim in claims() if claim.name == name]
    try:
        found = list(statements_of(claim, Source(RESULTS)))
    except Missing as missing:
        found = list(missing.statements)
    texts = [statement.text for statement in found]
    assert len(texts) >= 6
    assert len(set(texts)) == len(texts)
