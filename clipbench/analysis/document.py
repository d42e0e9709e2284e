"""results/tables and results/figures, from results/data alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipbench.analysis.groups import BASELINE, Panel, panels
from clipbench.analysis.load import Experiment, load
from clipbench.analysis.sensitivity import sensitivity, sensitivity_table
from clipbench.analysis.tables import Table, panel_tables
from clipbench.runs.archive import stem
from clipbench.runs.files import atomic_text
from clipbench.wording import amount

MOST_METHODS = 16  # in a figure of an experiment: more lines and labels than these can be told apart by nobody


def write_text(path: Path, text: str) -> Path:
    """Write `text` aside, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(path, text)
    return path


def provenance(experiment: Experiment) -> str:
    """One line: how many runs, by which code, with which PyTorch, on which devices."""
    table = experiment.runs

    def distinct(values: list[object]) -> str:
        return ", ".join(sorted({str(v) for v in values if v})) or "unknown"

    dirty = int(table["dirty"].fillna(False).astype(bool).sum()) if "dirty" in table else 0
    commits = distinct([str(c)[:10] for c in table.get("commit", []) if isinstance(c, str)])
    parts = [
        amount(len(table), "run"),
        f"commit {commits}" + (f" ({amount(dirty, 'run')} with uncommitted changes)" if dirty else ""),
        f"PyTorch {distinct([v.get('torch') for v in table['versions']])}",
        f"on {distinct([d.get('name') or d.get('type') for d in table['device']])}",
        amount(distinct([d.get("threads") for d in table["device"]]), "thread"),
    ]
    unverified = sum(1 for d in table["data"] if d.get("verified") is False)
    return "; ".join(parts) + (f"; {amount(unverified, 'run')} on data with unchecked sums" if unverified else "")


def write_tables(
    results: Path, names: Sequence[str], baseline: str = BASELINE, target: float | None = None
) -> list[Path]:
    """results/tables/<panel>.md for every panel, and <experiment>__sensitivity.md where there are tuning
    trials."""
    written = []
    for name in names:
        experiment = load(results, name)
        for panel in panels(experiment):
            text = "\n".join(table.markdown() for table in panel_tables(panel, results, baseline, target))
            written.append(write_text(results / "tables" / f"{panel.slug}.md", text))
        trials = sensitivity(experiment)
        if trials is not None:
            path = results / "tables" / f"{stem(name)}__sensitivity.md"
            written.append(write_text(path, sensitivity_table(trials).markdown()))
    return written


def write_figures(
    results: Path, names: Sequence[str], baseline: str = BASELINE, rows: Sequence[tuple[str, str]] = ()
) -> list[Path]:
    """results/figures/<the names of write_tables>.png and .svg; nothing for a panel without curves.

    `rows` are (split, metric) pairs to draw, one below the other; without them, a choice by what there is. Experiments
    of more than `MOST_METHODS` methods have tables alone; the leaderboard has a figure of its own.
    """
    from clipbench.analysis import plots  # Matplotlib takes a second to import, tables can do without
    from clipbench.analysis.study_plots import study_figures
    from clipbench.analysis.tuning_plots import tuning_figures

    written = []
    for name in names:
        experiment = load(results, name)
        if experiment.runs["method"].nunique() > MOST_METHODS:
            continue
        for panel in panels(experiment):
            figure = plots.comparison(panel, results, baseline, rows)
            written += plots.save(figure, results, panel.slug) if figure is not None else []
        for word, drawn in (study_figures(experiment) | tuning_figures(experiment)).items():
            written += plots.save(drawn, results, f"{stem(name)}__{word}")
        trials = sensitivity(experiment)
        if trials is not None:
            written += plots.save(plots.sensitivity(trials), results, f"{stem(name)}__sensitivity")
    return written


def summary(
    results: Path, name: str, baseline: str = BASELINE, dataset: str | None = None, model: str | None = None
) -> tuple[list[Table], list[Path]]:
    """The tables for the terminal (one test metric, validation loss) and the figures, drawn anew, of one
    experiment."""
    from clipbench.analysis import plots

    chosen = panels(load(results, name), dataset, model)
    tables, paths = [], []
    for panel in chosen:
        tables += panel_tables(panel, results, baseline, metrics=_short(panel))
        figure = plots.comparison(panel, results, baseline)
        paths += plots.save(figure, results, panel.slug)[:1] if figure is not None else []
    return tables, paths


def _short(panel: Panel) -> list[str]:
    from clipbench.analysis.tables import final_metrics

    names = final_metrics(panel)
    tests = [n for n in names if n.startswith("test_")][:1]
    return list(dict.fromkeys([*tests, *(n for n in names if n == "validation_loss")])) or names[:2]
