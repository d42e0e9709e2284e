"""The report: REPORT.md and report.html, from results/data, results/tables and results/figures.

`verdicts` (the first page: eleven verdicts, then each claim), `advice` (what to use, from the data), `pairs` (the
papers' rules against each other), `sections` (one experiment each, then the benchmarks), `report` (all of it, in
order), `html` (the same as one self-contained file).
"""

from clipbench.analysis.page.report import write_report

__all__ = ["write_report"]
