"""Per-sample clipping engines: the whole optimizer step's time and memory as ratios to plain SGD, gradient error.

Every cell (model, batch) is measured in processes of its own, under a memory and a time limit. Finished cells are kept
in results/data and not measured again, so the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from clipbench.bench import guard
from clipbench.bench.peers import ENGINES, LABELS
from clipbench.bench.per_sample_report import figure, tables
from clipbench.bench.problems import parse
from clipbench.cli.parser import Parser, writable
from clipbench.errors import ConfigError
from clipbench.runs.files import atomic_write
from clipbench.runs.parquet import read_frame
from clipbench.runs.provenance import device_info, versions
from clipbench.timing.interleaved import ratio

Row = dict[str, Any]
MODELS = ("alexnet", "alexnet_fc", "mlp_100", "mlp_512", "transformer_64")
BATCHES = (32, 128, 512)
SCALING = (
    *[("alexnet", batch) for batch in (32, 64, 128, 256, 512)],
    *[(f"transformer_{context}", 32) for context in (64, 128, 256, 512)],
    *[(f"mlp_{width}", 128) for width in (100, 256, 512, 1024, 2048)],
)
KEY = ["model", "batch", "engine"]
START = 60.0  # seconds a child may take beside its steps: the imports, on a busy machine
CHUNKS = (4, 16)  # parts of the batch that vmap is tried with where the whole does not fit


class Limits(NamedTuple):
    """memory: resident bytes of a process. step: seconds a step may take. budget: seconds of a cell's rounds.

    rounds: the most of an engine. threads: of torch.
    """

    memory: float
    step: float
    budget: float
    rounds: int
    threads: int

    @property
    def probe(self) -> float:
        """Seconds a process may take for two steps."""
        return START + 2 * self.step

    def child(self, seconds: float, **job: Any) -> guard.ChildResult:
        """One job of `clipbench.bench.cell` in its own process."""
        words = json.dumps({**job, "threads": self.threads})
        return guard.guarded(["-m", "clipbench.bench.cell", words], self.memory, seconds)


def cell(model: str, batch: int, engines: Sequence[str], errors: dict[str, Any], limits: Limits) -> list[Row]:
    """One row for plain SGD and one for each of `engines`; `errors` is what `gradient_errors` found for the model."""
    rows: dict[str, Row] = {}
    chunks: dict[str, int] = {}
    for engine in ["sgd", *(e for e in engines if e != "sgd")]:
        error = errors["errors"].get(engine)
        rows[engine] = {"model": model, "batch": batch, "engine": engine, "chunk": 0, "error": error}
        if isinstance(error, str):  # not installed, or it cannot do this model
            rows[engine] |= {"error": None, "status": error}
            continue
        rows[engine] |= footprint(model, batch, engine, errors["threshold"], limits)
        if rows[engine]["status"] == "ok":
            chunks[engine] = rows[engine]["chunk"]
    base = rows["sgd"].get("bytes")
    for row in rows.values():
        row["memory_ratio"] = row["bytes"] / base if base and row.get("bytes") is not None else None
    if "sgd" not in chunks:  # nothing to compare with
        return [row | {"status": f"plain SGD: {rows['sgd']['status']}"} for row in rows.values()]
    for engine, found in times(model, batch, chunks, errors["threshold"], limits, rows).items():
        rows[engine] |= found
    return list(rows.values())


def footprint(model: str, batch: int, engine: str, threshold: float, limits: Limits) -> Row:
    """`status` and peak `bytes` of one engine in a fresh process; vmap goes on to parts of the batch."""
    sizes = [0, *(batch // parts for parts in CHUNKS if batch >= parts)] if engine == "vmap" else [0]
    for chunk in sizes:
        status, result, memory = limits.child(
            limits.probe, job="memory", model=model, batch=batch, engine=engine, chunk=chunk, threshold=threshold
        )
        if not memory:
            break
    return {"status": status, "chunk": chunk, **result}


def times(
    model: str, batch: int, chunks: dict[str, int], threshold: float, limits: Limits, rows: dict[str, Row]
) -> dict[str, Row]:
    """Ratios of the engines of `chunks` to plain SGD, all interleaved in one process.

    Engines that fit alone may not fit beside the others: then the largest gets a process with SGD alone.
    """
    rest = max(len(chunks) * 5 * limits.step, 60.0)  # settling, and the least number of rounds
    what: dict[str, Any] = {"model": model, "batch": batch, "chunks": chunks, "threshold": threshold}
    seconds = START + limits.budget + rest
    status, result, memory = limits.child(seconds, job="timing", budget=limits.budget, most=limits.rounds, **what)
    if status == "ok":
        measured = result["seconds"]
        return {name: _ratio(measured[name], measured["sgd"]) for name in measured}
    peers = sorted((name for name in chunks if name != "sgd"), key=lambda name: rows[name].get("bytes") or 0)
    if memory and len(peers) > 1:
        found: dict[str, Row] = {}
        for group in ([peers[-1]], peers[:-1]):
            part = {name: chunks[name] for name in ["sgd", *group]}
            found |= times(model, batch, part, threshold, limits, rows)
        return found
    return {name: {"status": status} for name in chunks}


def _ratio(seconds: list[float], base: list[float]) -> Row:
    estimate, low, high, n = ratio(seconds, base[: len(seconds)])
    return {"ratio": estimate, "low": low, "high": high, "n": n, "step_seconds": statistics.median(seconds)}


def gradient_errors(model: str, engines: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Errors of the engines and the model's threshold; RuntimeError where even that cannot be computed."""
    outcome = limits.child(START + 60 * limits.step, job="errors", model=model, engines=list(engines))
    if outcome.status != "ok":
        raise RuntimeError(f"the gradient errors of {model}: {outcome.status}")
    return dict(outcome.result)


def measure(
    cells: Sequence[tuple[str, int]], engines: Sequence[str], limits: Limits, results: Path, name: str, fresh: bool
) -> pd.DataFrame:
    """Measure what results/data/<name>.parquet lacks, writing it and its tables after every cell."""
    path = results / "data" / f"{name}.parquet"
    machine = {"device": device_info(torch.device("cpu"))["name"], "threads": limits.threads}
    machine["torch"] = versions()["torch"]
    frame = pd.DataFrame() if fresh else kept(path, machine, limits)
    errors: dict[str, dict[str, Any]] = {}
    for model, batch in cells:
        done = set() if frame.empty else set(frame[(frame["model"] == model) & (frame["batch"] == batch)]["engine"])
        missing = [engine for engine in engines if engine not in done]
        if not missing:
            print(f"{model}, batch {batch}: done already", flush=True)
            continue
        if model not in errors:
            errors[model] = gradient_errors(model, ["sgd", *engines], limits)
        rows = cell(model, batch, missing, errors[model], limits)
        frame = merged(frame, [{**row, **machine} for row in rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, frame.to_parquet)
        print("\n".join(describe(row) for row in rows), flush=True)
    tables(frame, results, name)
    return frame


def kept(path: Path, machine: Row, limits: Limits) -> pd.DataFrame:
    """The rows of an earlier call on the same machine, with the same threads and torch.

    Of what did not fit only rows with the same limits are kept; what failed otherwise is tried again.
    """
    if not path.exists():
        return pd.DataFrame()
    frame = read_frame(path)
    same = [frame[column] == value for column, value in machine.items()]
    same.append(frame["status"].isin(["ok", guard.over_memory(limits.memory), guard.over_time(limits.probe)]))
    return frame[pd.concat(same, axis=1).all(axis=1)].reset_index(drop=True)


def merged(frame: pd.DataFrame, rows: list[Row]) -> pd.DataFrame:
    """`frame` with `rows` added, in place of older rows of the same cell and engine."""
    columns = ["status", "chunk", "ratio", "low", "high", "n", "step_seconds", "bytes", "memory_ratio", "error"]
    new = pd.DataFrame(rows, columns=[*KEY, *columns, "device", "threads", "torch"])
    numbers = ["ratio", "low", "high", "n", "step_seconds", "bytes", "memory_ratio", "error"]
    new[numbers] = new[numbers].astype("float64")
    if frame.empty:
        return new
    both = pd.concat([frame, new], ignore_index=True)
    return both.drop_duplicates(KEY, keep="last", ignore_index=True)


def describe(row: Row) -> str:
    """One engine of one cell in a line."""
    head = f"{row['model']}, batch {row['batch']}, {LABELS[row['engine']]}:"
    if row["status"] != "ok":
        return f"{head} {row['status']}"
    error = "" if row["error"] is None else f", gradient error {row['error']:.1e}"
    size = "" if row["memory_ratio"] is None else f", memory × {row['memory_ratio']:.2f}"
    part = f", {row['chunk']} samples at a time" if row["chunk"] else ""
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"{head} time × {row['ratio']:.2f} {interval} (n = {row['n']}){size}{error}{part}"


def options(argv: list[str]) -> argparse.Namespace:
    """The command line; ConfigError for a model or engine that does not exist, or a number out of range."""
    parser = Parser(prog="python -m clipbench.bench per_sample", description=__doc__)
    add = parser.add_argument
    add("--results", type=writable, default="results", help="folder for data/, tables/ and figures/ (default: results)")
    add("--smoke", action="store_true", help="one tiny cell, for tests; its files are called …_smoke")
    add("--models", nargs="+", default=MODELS, help="alexnet, alexnet_fc, mlp_<width>, transformer_<context>")
    add("--batches", nargs="+", type=int, default=BATCHES, help="samples a step (default: 32 128 512)")
    add("--engines", nargs="+", default=list(ENGINES), help=f"of {', '.join(ENGINES)} (default: all)")
    add("--scaling", choices=("with", "only", "without"), default="with",
        help="the second table, clipbench alone over batch size, context length and width (default: with)")  # fmt: skip
    add("--rounds", type=int, default=40, help="most interleaved rounds of an engine (default: 40)")
    add("--seconds", type=float, default=20.0, help="of a cell's rounds together, as far as the least number "
        "of rounds allows: 15 of plain SGD and clipbench, 3 of a peer (default: 20)")  # fmt: skip
    add("--memory", type=float, default=14.0, help="limit on a process' resident size, GiB (default: 14)")
    add("--step", type=float, default=20.0, help="limit on the time of one step, seconds (default: 20)")
    add("--fresh", action="store_true", help="measure again what results/data already holds")
    chosen = parser.parse_args(argv)
    for model in chosen.models:
        try:
            parse(model)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    for engine in chosen.engines:
        if engine not in ENGINES:
            raise ConfigError(f"engines must be among {', '.join(ENGINES)}, got {engine}")
    for name in ("rounds", "seconds", "memory", "step"):
        if getattr(chosen, name) <= 0:
            raise ConfigError(f"{name} must be > 0, got {getattr(chosen, name)}")
    if min(chosen.batches) < 1:
        raise ConfigError(f"batches must be >= 1, got {min(chosen.batches)}")
    return chosen


def main(argv: list[str]) -> None:
    """Measure both tables and write results/{data,tables,figures}/bench_per_sample*."""
    chosen = options(argv)
    limits = Limits(chosen.memory * 2**30, chosen.step, chosen.seconds, chosen.rounds, torch.get_num_threads())
    cells = [(model, batch) for model in chosen.models for batch in chosen.batches]
    scaling, name = list(SCALING), "bench_per_sample"
    if chosen.smoke:
        limits = limits._replace(budget=0.2, rounds=2, threads=1)
        cells, scaling, name = [("mlp_8", 4)], [("mlp_8", 4)], f"{name}_smoke"
    results = Path(chosen.results)
    if chosen.scaling != "only":
        figure(measure(cells, chosen.engines, limits, results, name, chosen.fresh), results, name)
    if chosen.scaling != "without":
        measure(scaling, ["clipbench"], limits, results, f"{name}_scaling", chosen.fresh)
