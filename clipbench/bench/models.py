"""The per-sample engine on models that others wrote: exactness against autograd, slow paths, time and memory.

Exactness is of norms and clipped gradients at 2, 3, 4, 5 and 9 samples in float64; time is that of the whole optimizer
step at 16 samples over plain SGD's, interleaved in one process, beside torch.func's vmap and Opacus where they run.
Every model is measured in processes of its own. Finished ones are kept in results/data, so the command can be
interrupted. Needs the extra `models` (timm, transformers); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from clipbench.bench.models_report import describe, figure, tables
from clipbench.bench.models_zoo import zoo
from clipbench.bench.per_sample import START, Limits, cell
from clipbench.bench.problems import PREFIX
from clipbench.cli.parser import Parser, writable
from clipbench.errors import ConfigError
from clipbench.runs.files import atomic_write
from clipbench.runs.parquet import read_frame
from clipbench.runs.provenance import device_info, versions

Row = dict[str, Any]
NAME = "bench_models"
BATCH = 16
PEERS = ("vmap", "opacus_hooks")
SMOKE = (
    "resnet_gn", "mobilenet_v3", "convnext_v2", "swin_v2", "beit", "resmlp", "gpt2", "bert", "gemma", "t5", "encoder",
    "lstm_packed",
)  # fmt: skip
"""Twelve models of as many kinds, which continuous integration runs."""
TIMED = ("resmlp", "gpt2")  # of those
UNTIMED = "not timed"
NUMBERS = ["ratio", "low", "high", "n", "step_seconds", "bytes", "memory_ratio", "error", "norm_error",
           "gradient_error", "parameters", "threshold"]  # fmt: skip
COLUMNS = ["model", "batch", "engine", "status", "chunk", *NUMBERS, "slow", "complaint", "device", "threads", "torch"]


def exact(name: str, engines: Sequence[str], limits: Limits) -> Row:
    """What `models_cell.exactness` found; `status` says why there is nothing."""
    seconds = 2 * START + 60 * limits.step
    outcome = limits.child(seconds, job="exactness", model=PREFIX + name, engines=["sgd", "clipbench", *engines])
    nothing: Row = {"norm_error": None, "gradient_error": None, "slow": {}, "complaint": outcome.status, "errors": {}}
    return dict(outcome.result) if outcome.status == "ok" else nothing


def rows_of(name: str, found: Row, engines: Sequence[str], limits: Limits, timed: bool) -> list[Row]:
    """One row for plain SGD and each engine; exactness and slow paths stand in clipbench's."""
    if timed and found.get("threshold") is not None and found["complaint"] is None:
        rows = cell(PREFIX + name, BATCH, ["clipbench", *engines], found, limits)
    else:
        errors = {engine: found["errors"].get(engine) for engine in ("sgd", "clipbench", *engines)}
        rows = [{"engine": engine, "batch": BATCH, "chunk": 0, "status": error if isinstance(error, str) else UNTIMED,
                 "error": None if isinstance(error, str) else error} for engine, error in errors.items()]  # fmt: skip
    for row in rows:
        row["model"] = name
        if row["engine"] == "clipbench":
            row |= {key: found.get(key) for key in ("norm_error", "gradient_error", "complaint", "parameters")}
            row |= {"slow": json.dumps(found["slow"]), "threshold": found.get("threshold")}
    return rows


def measure(names: Sequence[str], chosen: argparse.Namespace, limits: Limits, results: Path, name: str) -> pd.DataFrame:
    """Measure what results/data/<name>.parquet lacks, writing it after every model; returns all rows of the file."""
    path = results / "data" / f"{name}.parquet"
    machine = {"device": device_info(torch.device("cpu"))["name"], "threads": limits.threads}
    machine["torch"] = versions()["torch"]
    frame = pd.DataFrame(columns=COLUMNS) if chosen.fresh else finished(path, machine, chosen.errors_only)
    for model in names:
        if model in set(frame["model"]):
            print(f"{model}: done already", flush=True)
            continue
        found = exact(model, chosen.engines, limits)
        timed = not chosen.errors_only and (not chosen.smoke or model in TIMED)
        rows = rows_of(model, found, chosen.engines, limits, timed)
        new = pd.DataFrame([{**row, **machine} for row in rows], columns=COLUMNS)
        new[NUMBERS] = new[NUMBERS].astype("float64")
        frame = new if frame.empty else pd.concat([frame, new], ignore_index=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, frame.to_parquet)
        print(describe(new), flush=True)
    return frame


def finished(path: Path, machine: Row, errors_only: bool) -> pd.DataFrame:
    """Models of an earlier call on the same machine that need no other look: timed ones, and exact ones.

    With `errors_only` those that were not timed count too.
    """
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    frame = read_frame(path)
    for column, value in machine.items():
        frame = frame[frame[column] == value]
    ours = frame[(frame["engine"] == "clipbench") & frame["complaint"].isna()]
    wanted = ours if errors_only else ours[ours["status"] == "ok"]
    return frame[frame["model"].isin(wanted["model"])].reset_index(drop=True)


def options(argv: list[str]) -> argparse.Namespace:
    """The command line; ConfigError for a model that does not exist, a missing library or a number out of range."""
    parser = Parser(prog="python -m clipbench.bench models", description=__doc__)
    add = parser.add_argument
    add("--results", type=writable, default="results", help="folder for data/, tables/ and figures/ (default: results)")
    add("--smoke", action="store_true", help="twelve models, of which two are timed; the files are called …_smoke")
    add("--only", nargs="+", metavar="NAME", help="these models")
    add("--errors-only", action="store_true", help="exactness and slow paths, no times")
    add("--engines", nargs="*", default=list(PEERS), choices=PEERS, help="peers (default: vmap opacus_hooks)")
    add("--rounds", type=int, default=40, help="most interleaved rounds of an engine (default: 40)")
    add("--seconds", type=float, default=20.0, help="of a model's rounds together (default: 20)")
    add("--memory", type=float, default=8.0, help="limit on a process' resident size, GiB (default: 8)")
    add("--step", type=float, default=60.0, help="limit on the time of one step, seconds (default: 60)")
    add("--fresh", action="store_true", help="measure again what results/data already holds")
    chosen = parser.parse_args(argv)
    for name in ("rounds", "seconds", "memory", "step"):
        if getattr(chosen, name) <= 0:
            raise ConfigError(f"{name} must be > 0, got {getattr(chosen, name)}")
    try:
        known = zoo()
    except ImportError as missing:
        raise ConfigError(
            f"models needs {missing.name}, which is not installed: pip install 'clipbench[models]'"
        ) from None
    for name in chosen.only or ():
        if name not in known:
            raise ConfigError(f"only must be among {', '.join(known)}, got {name}")
    return chosen


def main(argv: list[str]) -> None:
    """Measure, write results/{data,tables,figures}/bench_models*; SystemExit(1) where a norm or gradient is wrong."""
    chosen = options(argv)
    limits = Limits(chosen.memory * 2**30, chosen.step, chosen.seconds, chosen.rounds, torch.get_num_threads())
    names, name = list(zoo()), NAME
    if chosen.smoke:
        limits = limits._replace(budget=0.5, rounds=3)
        names, name = list(SMOKE), f"{NAME}_smoke"
    results = Path(chosen.results)
    frame = measure(chosen.only or names, chosen, limits, results, name)
    tables(frame, results, name)
    if not chosen.errors_only:
        figure(frame, results, name)
    wrong = frame[(frame["engine"] == "clipbench") & (frame["complaint"].notna() | (frame["norm_error"] > 1e-4)
                                                      | (frame["gradient_error"] > 1e-4))]  # fmt: skip
    if not wrong.empty:
        print(f"clipbench: wrong or refused: {', '.join(wrong['model'])}", flush=True)
        raise SystemExit(1)
