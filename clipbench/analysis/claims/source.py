"""Where a claim's statistic gets its data: collected experiments and benchmark tables, each read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.load import Experiment, load
from clipbench.runs.archive import read_table


class Missing(ValueError):
    """Data that a claim rests on are not there yet, or cannot decide; the message says which and why.

    `statements` are what they allow to show all the same.
    """

    def __init__(self, reason: str, statements: Sequence[Statement] = ()) -> None:
        super().__init__(reason)
        self.statements = tuple(statements)


class Source:
    """The collected results below one folder."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._loaded: dict[str, Experiment] = {}

    def experiment(self, name: str) -> Experiment:
        """The runs of an experiment. Raises Missing where it has not been collected."""
        if name not in self._loaded:
            try:
                self._loaded[name] = load(self.results, name)
            except ValueError as error:
                raise Missing(f"{name} has no runs") from error
        return self._loaded[name]

    def table(self, name: str) -> pd.DataFrame:
        """results/data/<name>.parquet, as of a benchmark. Raises Missing where it is not there."""
        path = self.results / "data" / f"{name}.parquet"
        if not path.exists():
            raise Missing(f"{name} was not measured")
        return read_table(path)
