"""Tables and figures of the benchmarks, made again from results/data: nothing is measured.

Each benchmark has a module `<benchmark>_report` with `tables(frame, results, name)`, and `figure` of the same arguments
where it draws one; its data are results/data/bench_<benchmark>[_<part>].parquet.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from clipbench.bench import BENCHMARKS
from clipbench.runs.parquet import read_frame


def rebuild(results: Path) -> list[str]:
    """Write every benchmark's tables and figures below `results` anew; the names of those that had data."""
    done = []
    for path in sorted((results / "data").glob("bench_*.parquet")):
        module = report_of(path.stem)
        if module is None:
            continue
        (results / "tables").mkdir(parents=True, exist_ok=True)
        frame = read_frame(path)
        module.tables(frame, results, path.stem)
        if hasattr(module, "figure") and path.stem in {f"bench_{name}" for name in BENCHMARKS}:
            module.figure(frame, results, path.stem)
        done.append(path.stem)
    return done


def report_of(name: str) -> ModuleType | None:
    """The report module of the data `name`: that of the benchmark whose name it begins with; None where
    that draws its tables itself, and for other data."""
    words = name.removeprefix("bench_")
    fitting = [known for known in BENCHMARKS if words == known or words.startswith(f"{known}_")]
    module = f"clipbench.bench.{max(fitting, key=len)}_report" if fitting else None
    return importlib.import_module(module) if module and importlib.util.find_spec(module) else None
