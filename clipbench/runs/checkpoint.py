"""What a checkpoint holds: a job's state, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipbench.runs.finals import best_metrics, final_metrics
from clipbench.runs.record import COLUMNS

LAYOUT = 2  # raised whenever the content changes: a checkpoint of another layout is not continued
FORMS = (COLUMNS, final_metrics, best_metrics)  # what else forms the numbers of a record


def pack(run_id: str, state: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The content of a checkpoint: layout, run id, the job's state, and what its recorder needs to go on."""
    return {"layout": LAYOUT, "run_id": run_id, "state": dict(state), **more}


def foreign(content: Mapping[str, Any], run_id: str) -> str | None:
    """Why a checkpoint is not to be continued by the run `run_id`; None where it is that run's."""
    wanted = {"layout": LAYOUT, "run_id": run_id}
    differing = [f"{key} {content.get(key)} for {value}" for key, value in wanted.items() if content.get(key) != value]
    return ", ".join(differing) or None
