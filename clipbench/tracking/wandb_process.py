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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

Row = dict[str, Any]
AXES = ("step", "samples", "train_seconds", "calibrated_seconds")
LONGEST_TAG = 64  # characters that W&B takes
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
    if run.settings.mode == "offline":
        print(Path(run.dir).parent, flush=True)  # for the user, who may want to send it
    seconds = options["step_seconds"] or _calibrated(options["calibrations"], info, first["config"])
    for axis in AXES:
        run.define_metric(axis)
    for axis in AXES[1:]:
        run.define_metric(f"vs_{axis}/*", step_metric=axis)
    for split in ("train", "validation", "test"):
        run.define_metric(f"{split}/*", step_metric="step")
    if not run.resumed:  # offline, or W&B does not know the run: a new folder, which is to be whole
        for entry in entries(first["earlier"], seconds):
            run.log(entry)
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

    tags = _tags(info)
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
            tags=tags,
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
        return init("offline", f"{name}-offline"), f"{reason}; stored offline"  # the service keeps the refused id


def _tags(info: Mapping[str, Any]) -> list[str]:
    """What runs are told apart by, and the user's own."""
    own = os.environ.pop("WANDB_TAGS", "").split(",")  # W&B would refuse a long one, and with it the run
    words = [info.get(key) for key in ("method", "dataset", "model", "optimizer", "role")]
    return list(dict.fromkeys(str(word).strip()[:LONGEST_TAG] for word in [*words, *own] if word and str(word).strip()))


def _calibrated(places: Sequence[str], info: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """The calibrated step time of the run's method, of the first results folder that has one; None where none has."""
    import pandas as pd

    from clipbench.analysis.load import load_calibration
    from clipbench.errors import RecordError

    run = dict(info) | {"config": dict(config)}
    for place in places:
        try:
            table = load_calibration(Path(place), info["experiment"], pd.DataFrame([run]))
        except (RecordError, ValueError) as error:  # an axis less is no reason to store nothing
            print(f"no calibrated axis: {error}", file=sys.stderr, flush=True)
            continue
        if info["method"] in table.index:
            return float(table.loc[info["method"], "step_seconds"])
    return None


if __name__ == "__main__":
    serve(sys.stdin.buffer)
