"""Spectral clipping kernels against float32 SVD and a float64 reference, and whole training steps under them.

The matrices have a flat bulk with outliers, a power law, or are gradients of a short training run. Times are medians of
rounds interleaved in one process; ratios are to torch.linalg.svd in float32, or to the step of plain SGD. Finished
shapes are kept in results/data and not measured again, so the command can be interrupted; --again forgets them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from clipbench.bench.spectral_cases import HUGE, SHAPES, Case, cases, error, methods
from clipbench.bench.spectral_report import figure, tables
from clipbench.bench.spectral_steps import OVERRIDES, measure, train, training
from clipbench.cli.parser import Parser, positive, writable
from clipbench.runs.files import atomic_write
from clipbench.runs.parquet import read_frame
from clipbench.runs.provenance import device_info, versions
from clipbench.timing.interleaved import interleave, ratio

Row = dict[str, Any]
NAME = "bench_spectral"
TIMED_STEPS = ("alexnet", "transformer")


def rows_of(case: Case, rounds: int) -> list[Row]:
    """One row a method: median seconds, ratio to the float32 SVD, error."""
    calls = methods(case)
    base = {
        "kind": "kernel", "problem": f"{case.shape[0]}x{case.shape[1]}", "spectrum": case.spectrum, "level": case.level,
        "above": case.above, "sigma_over_tau": case.ratio,
    }  # fmt: skip
    seconds = interleave(calls, rounds, warmup=1)
    rows = []
    for name, column in seconds.items():
        found = ratio(column, seconds["svd"])
        accuracy = None if name == "svd" else error(calls[name](), case)
        rows.append(base | {"method": name, "seconds": statistics.median(column), "error": accuracy} | found._asdict())
    return rows


def gradients(steps: int, root: str | None, files: bool) -> tuple[dict[tuple[int, int], list[Tensor]], dict[str, str]]:
    """Gradients of two consecutive steps by shape, and what each model was trained on."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    sources = {}
    for name in OVERRIDES:
        run = training(name, root, files)
        if run is None:
            print(f"{name}: no text, so no real gradients of its shapes", flush=True)
            continue
        sources[name] = run.source
        for pair in train(run, steps, keep=2).values():
            found.setdefault((pair[0].shape[0], pair[0].shape[1]), pair)
    return found, sources


def kernel_rows(arguments: argparse.Namespace, known: set[str]) -> Iterator[list[Row]]:
    """The rows of each shape that is not known yet."""
    wanted = [shape for family in SHAPES.values() for shape in family]
    if arguments.smoke:
        wanted = [(64, 363), (128, 128)]
    todo = [shape for shape in wanted if f"{shape[0]}x{shape[1]}" not in known]
    if not todo or arguments.only == "steps":
        return
    real, sources = gradients(2 if arguments.smoke else arguments.steps, arguments.data, not arguments.smoke)
    for shape in todo:
        rounds = max(2, arguments.rounds // 10) if shape[0] * shape[1] > HUGE else arguments.rounds
        rows: list[Row] = []
        for case in cases(shape, real.get(shape), arguments.smoke):
            rows += rows_of(case, rounds)
        print(f"{shape[0]}x{shape[1]}: {len(rows)} rows", flush=True)
        yield [row | {"source": " and ".join(sorted(set(sources.values())))} for row in rows]


def step_rows(arguments: argparse.Namespace, known: set[str]) -> Iterator[list[Row]]:
    """The rows of each model that is not known yet."""
    for name in TIMED_STEPS:
        if name in known or arguments.only == "kernels":
            continue
        run = training(name, arguments.data, not arguments.smoke)
        if run is None:
            print(f"{name}: no text, left out", flush=True)
            continue
        train(run, 2 if arguments.smoke else arguments.steps)
        rounds, settle = (2, 1) if arguments.smoke else (arguments.rounds, 20)
        rows = measure(run, rounds, settle)
        for row in rows:
            print(
                f"{name}, {row['method']}: {row['estimate']:.3f} × SGD [{row['low']:.3f}, {row['high']:.3f}]",
                flush=True,
            )
        yield [{"kind": "step", "problem": name, "source": run.source} | row for row in rows]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m clipbench.bench spectral", description=__doc__)
    parser.add_argument(
        "--results", type=writable, default="results", help="folder for data/, tables/, figures/ (default: results)"
    )
    parser.add_argument("--data", default=None, help="folder of the datasets (default: data.root of the config)")
    parser.add_argument("--rounds", type=positive, default=20, help="interleaved rounds a case (default: 20)")
    parser.add_argument("--steps", type=positive, default=200, help="training steps before anything is measured (200)")
    parser.add_argument("--only", choices=["kernels", "steps"], help="one half alone")
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument(
        "--smoke", action="store_true", help="two small shapes, random images and two rounds, for tests"
    )
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        arguments.rounds = 2
    return arguments


def main(argv: list[str]) -> None:
    """Measure what is missing and write results/{data,tables,figures}/bench_spectral.*."""
    arguments = parse(argv)
    results = Path(arguments.results)
    path = results / "data" / f"{NAME}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = read_frame(path) if path.exists() and not arguments.again else pd.DataFrame()
    known = set(frame["problem"]) if len(frame) else set()
    info = device_info(torch.device("cpu"))
    about = {"device": info["name"], "threads": info["threads"], "torch": versions()["torch"]}
    for half in (kernel_rows, step_rows):
        for rows in half(arguments, known):
            frame = pd.concat([frame, pd.DataFrame([row | about for row in rows])], ignore_index=True)
            whole = frame
            atomic_write(path, lambda part, whole=whole: whole.to_parquet(part))  # type: ignore[misc]
    tables(frame, results, NAME)
    figure(frame, results, NAME)
