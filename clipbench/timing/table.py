"""results/data/calibration.parquet: one row for each experiment, method, device and number of threads.

The rows of an experiment on one device with one number of threads always come from ONE calibration: step times of
different moments are not put side by side, and a second device adds its own rows beside the first one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from clipbench.errors import RecordError, Unwritable
from clipbench.runs import provenance
from clipbench.runs.files import atomic_write, set_aside, try_lock
from clipbench.runs.parquet import read_frame
from clipbench.timing.footprint import Footprint
from clipbench.timing.session import Session
from clipbench.wording import amount

KEY = ["experiment", "device", "threads"]


@contextmanager
def undisturbed(results: Path) -> Iterator[None]:
    """Keep other calibrations of this results folder away: two at once would measure each other. Raises RecordError."""
    folder = results / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holding = try_lock(folder / ".calibration.lock")
        mine = holding.__enter__()
    except OSError as error:
        raise Unwritable(f"paths.results must be a writable folder, got {results} ({error.strerror})") from error
    try:
        if not mine:
            raise RecordError(f"another calibration is under way in {results}; two at once would measure each other")
        yield
    finally:
        holding.__exit__(None, None, None)


def rows(
    session: Session, footprints: Mapping[str, Footprint], tuned: Mapping[str, bool], fingerprints: Mapping[str, str],
    works: Mapping[str, str],
) -> pd.DataFrame:  # fmt: skip
    """The session's rows: step time, ratio with interval, rounds, set-up, memory, and what they were measured with."""
    setup, device = session.setup, provenance.device_info(session.setup.device)
    common = {
        "train_steps": session.train_steps, "repeats": session.repeats, "precision": setup.options.precision,
        "samples_per_step": setup.samples_per_step, "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(provenance.versions(), sort_keys=True), "hardware": json.dumps(device, sort_keys=True),
    }  # fmt: skip
    return pd.DataFrame([
        {
            "experiment": setup.options.experiment, "method": method, "device": device["name"],
            "threads": device["threads"], "step_seconds": found.step_seconds, "ratio": found.ratio.estimate,
            "ratio_low": found.ratio.low, "ratio_high": found.ratio.high, "n": found.ratio.n, "spread": found.spread,
            **footprints[method]._asdict(), "tuned": tuned[method],
            "fingerprint": fingerprints[method], "work": works[method], **common,
        }
        for method, found in session.timings.items()
    ])  # fmt: skip


def store(path: Path, new: pd.DataFrame, say: Callable[[str], None]) -> None:
    """Put the rows of one session into the file, in place of an earlier session's on the same device.

    Raises ValueError where the rows are not of one experiment, device and number of threads; a file that cannot be
    read is set aside.
    """
    for column in KEY:
        if new[column].nunique() != 1:
            raise ValueError(f"new must hold one {column}, got {sorted(new[column].unique())}")
    earlier = _read(path, say)
    if earlier is not None:
        same = (earlier[KEY] == new[KEY].iloc[0]).all(axis=1)
        lost = sorted(set(earlier[same]["method"]) - set(new["method"]))
        if lost:
            say(f"the earlier rows of {', '.join(lost)} are dropped: times of two sessions cannot be compared")
        new = pd.concat([earlier[~same], new], ignore_index=True)
    atomic_write(path, lambda part: new.to_parquet(part))


def _read(path: Path, say: Callable[[str], None]) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return read_frame(path)
    except Exception as error:  # whatever a parser makes of a truncated file
        say(f"{path} is damaged ({type(error).__name__}); moved to {set_aside(path).name}")
        return None


def markdown(frame: pd.DataFrame, baseline: str) -> str:
    """The session as a table, with what it was measured on."""
    first = frame.iloc[0]
    columns = [
        "method", "ms per step", f"ratio to {baseline}", "spread", "first step, s", "peak memory, MB",
        "of it in the steps, MB", "settings",
    ]  # fmt: skip
    lines = [
        f"Step time of {first['experiment']}: {first['device']}, {amount(first['threads'], 'thread')}, "
        f"{first['n']} interleaved rounds of {first['repeats']} steps, "
        f"from the weights after {first['train_steps']} steps of {baseline}; "
        "ratio of medians with 95 % interval; spread: interquartile range over median.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in frame.to_dict("records"):
        peak, steps = row["peak_memory_bytes"] / 1e6, (row["peak_memory_bytes"] - row["base_memory_bytes"]) / 1e6
        lines.append(
            f"| {row['method']} | {1e3 * row['step_seconds']:.3g} "
            f"| {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}] | {row['spread']:.0%} "
            f"| {row['setup_seconds']:.2f} | {peak:.0f} | {steps:.0f} | {'tuned' if row['tuned'] else 'default'} |"
        )
    return "\n".join(lines) + "\n"
