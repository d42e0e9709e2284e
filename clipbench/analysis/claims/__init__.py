"""The papers' claims and their verdicts, by rules that were fixed before the runs (conf/claims.yaml).

Read in this order: `statement` (an effect, what is claimed of it, the verdict), `readings` (one number per seed),
`effects` (paired, with intervals), `training`, `tuning`, `kernels`, `studies` (each claim's statistic), `verdicts`.
"""

from clipbench.analysis.claims.statement import Decision, Statement, decide
from clipbench.analysis.claims.verdicts import Claim, Outcome, claims, verdicts

__all__ = ["Claim", "Decision", "Outcome", "Statement", "claims", "decide", "verdicts"]
