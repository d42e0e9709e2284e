"""Many runs: what is to do before a sweep starts, and what came of it at its end."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback

from clipbench.execute import Outcome


def describe(outcome: Outcome) -> str:
    """One line: status, steps, seconds and the final metrics."""
    info = outcome.info
    shown = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in info.get("final", {}).items()
        if name.startswith(("validation_", "test_")) or name == "train_loss"
    ]
    seconds = info.get("seconds", {}).get("train", 0.0)
    head = f"{outcome.status}: {info.get('method')} seed {info.get('seed')}, {info.get('steps_done')} steps"
    return f"{head} in {seconds:.1f} train seconds; {', '.join(shown)}"


class SweepReport(Callback):
    """Hydra callback."""
