"""Records → tables, figures and verdicts. Reads files only: it imports nothing else of clipbench, and no
torch.

The modules, in the order of the work: `collect` (records → results/data), `load` (results/data → data
frames), `groups` (which runs are compared), `stats` and `survival` (the numbers), `timing`, `targets`,
`tables`, `sensitivity`, `plots` (imported where it is used: it loads Matplotlib) and `document` (REPORT.md).
"""

from clipbench.extras import need

need("PIL", "markdown_it", "matplotlib", "pandas", "pyarrow", "scipy", "yaml")

from clipbench.analysis.collect import collect
from clipbench.analysis.groups import Panel, Variant, panels
from clipbench.analysis.load import Experiment, experiments, load
from clipbench.analysis.stats import (
    Interval,
    interquartile_mean,
    mean_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    steps_to_target,
    time_to_target,
)
from clipbench.analysis.tables import Table, panel_tables

__all__ = [
    "Experiment",
    "Interval",
    "Panel",
    "Table",
    "Variant",
    "collect",
    "experiments",
    "interquartile_mean",
    "load",
    "mean_interval",
    "paired_difference",
    "panel_tables",
    "panels",
    "performance_profile",
    "probability_of_improvement",
    "steps_to_target",
    "time_to_target",
]
