"""The papers' claims and their verdicts, by rules that were fixed before the runs (conf/claims.yaml).

Read in this order: `statement` (an effect, what is claimed of it, the verdict), `readings` (one number per seed),
`effects` (paired, with intervals), `training`, `tuning`, `kernels`, `estimators` … (each claim's statistic), `judged`
(all of them, decided).
"""

from clipbench.analysis.claims.judged import Claim, JudgedClaim, claims, verdicts
from clipbench.analysis.claims.statement import Decision, Statement, decide

__all__ = ["Claim", "Decision", "JudgedClaim", "Statement", "claims", "decide", "verdicts"]
