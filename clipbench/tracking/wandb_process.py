"""Weights & Biases' own process: `python -m clipbench.tracking.wandb_process` reads lines of JSON and tells W&B.

Started by `clipbench.tracking.tracker`, which writes to its pipe. Whatever W&B does happens here and not in the
process that is timed; here it may hang, and be ended.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

Row = dict[str, Any]
AXES = ("step", "samples", "train_seconds", "calibrated_seconds")
COMPARED = ("loss", "accuracy")
DESCRIBED = (
    "run_id", "role", "trial", "commit", "dirty", "fingerprint", "device", "versions", "parameters", "data",
)  # fmt: skip


def entries(rows: Iterable[Row], step_seconds: float | None) -> Iterator[dict[str, Any]]:
    """One W&B entry per step: "validation/loss" …, every axis, and loss and accuracy once more below each
    axis' name.

    W&B gives a metric one axis; "vs_train_seconds/validation_loss" is the same number with another.
    """
    for step, group in itertools.groupby(rows, key=lambda row: row["step"]):
        entry: dict[str, Any] = {}
        for row in group:
            axes = {
                "step": step,
                "epoch": row["epoch"],
                "samples": row["samples"],
                "train_seconds": row["train_seconds"],
            }
            if step_seconds is not None:
                axes["calibrated_seconds"] = step * step_seconds
            entry |= axes | {f"{row['split']}/{row['metric']}": row["value"]}
            if row["metric"] in COMPARED:
                name = f"{row['split']}_{row['metric']}"
                entry |= {f"vs_{axis}/{name}": row["value"] for axis in AXES[1:] if axis in axes}
        yield entry


def serve(pipe: IO[bytes]) -> None:
    """W&B's own process: the first line opens the run, the others log, the end of the pipe closes it."""
    first = json.loads(pipe.readline())
    options, info = first["options"], first["info"]
    run, note = _open(options, info, first["config"])
    seconds = options["step_seconds"] or _calibrated(options["results"], info)
    for axis in AXES:
        run.define_metric(axis)
    for axis in AXES[1:]:
        run.define_metric(f"vs_{axis}/*", step_metric=axis)
    for split in ("train", "validation", "test"):
        run.define_metric(f"{split}/*", step_metric="step")
    status = "interrupted"  # the run's process ended without a word
    for line in pipe:
        message = json.loads(line)
        status = message.get("status", status)
        for entry in entries(message.get("rows", ()), seconds):
            run.log(entry)
    # The run may have been killed: nobody else would end this process where W&B does not answer.
    watchdog = threading.Timer(options["timeout"], os._exit, [3])
    watchdog.daemon = True
    watchdog.start()
    run.summary["status"] = status
    run.finish(exit_code=0 if status in ("ok", "diverged") else 1)
    print(note, file=sys.stderr, flush=True)
    # Everything is stored by now. W&B's exit handlers would talk to a server that need not answer, offline
    # too; its service ends by itself when this process is gone.
    os._exit(1 if note else 0)


def _open(options: Mapping[str, Any], info: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, str]:
    """The W&B run, and a note where it had to be opened offline."""
    import wandb

    # A run made anew is another W&B run, a resumed one is not: its `started` is the first one's.
    name = f"{info['run_id']}-{re.sub('[^0-9]', '', str(info.get('started')))[:14]}"

    def init(mode: Literal["offline", "online"], identity: str) -> Any:
        return wandb.init(
            project=options["project"],
            entity=options["entity"],
            dir=options["directory"],
            mode=mode,
            id=identity,
            resume="allow" if mode == "online" else None,
            group=info["experiment"],
            name=f"{info['method']}, seed {info['seed']}",
            job_type=info.get("role"),
            config=dict(config) | {"run": {key: info[key] for key in DESCRIBED if key in info}},
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                x_disable_stats=True,  # sampling the machine would disturb what is timed
                x_disable_machine_info=True,
                x_disable_viewer=mode == "offline",  # asks the server who is logged in, offline too
                init_timeout=0.6 * options["timeout"],
            ),
        )

    if options["mode"] == "offline":
        return init("offline", name), ""
    try:
        return init("online", name), ""
    except Exception as error:  # whatever W&B raises: no account, no network, no answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"stored offline, `wandb sync` sends what is in {options['directory']}/wandb"
        return init("offline", f"{name}-offline"), f"{reason}; {where}"  # the service keeps the refused id


def _calibrated(results: str, info: Mapping[str, Any]) -> float | None:
    """The calibrated step time of the run's method, None where there is none."""
    if not (Path(results) / "data" / "calibration.parquet").exists():
        return None
    import pandas as pd

    from clipbench.analysis.load import load_calibration

    table = load_calibration(Path(results), info["experiment"], pd.DataFrame([dict(info)]))
    return float(table.loc[info["method"], "step_seconds"]) if info["method"] in table.index else None


if __name__ == "__main__":
    serve(sys.stdin.buffer)
