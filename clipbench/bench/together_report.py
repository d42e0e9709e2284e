"""Table of runs that go together, from the frame that `clipbench.bench.together` measures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.runs.files import atomic_text

STEPS = 30_000
TRIALS = {
    "norm_clip": 300, "spectral_clip 0.05": 300, "spectral_clip_ema": 100, "spectral_clip_quantile": 100,
    "sgd adam": 100, "norm_clip adam": 300,
}  # fmt: skip
"""Paper 2's searches on its MLP. Of the constant threshold the dearest one, which always clips, stands for all."""


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md."""
    first = frame.iloc[0]
    lines = [
        f"Trial-steps per core-second on paper 2's MLP, alone and {first['members']} runs together, with the ratio's "
        f"quartiles over interleaved rounds on one thread ({first['device']}, torch {first['torch']}).",
        "",
        "| method | alone | together | ratio | quartiles |",
        "| :--- | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['case']} | {row['lone_per_second']:.0f} | {row['together_per_second']:.0f} | {row['ratio']:.1f} "
            f"| {row['ratio_low']:.1f} … {row['ratio_high']:.1f} |"
            for _, row in frame.iterrows()
        ),
        "",
        *protocol(frame),
        f"A sweep of {first['sweep_runs']:.0f} small runs: {first['sweep_lone_seconds']:.0f} s one by one, "
        f"{first['sweep_together_seconds']:.0f} s together; largest relative difference of a final metric "
        f"{first['sweep_largest_difference']:.0e}.",
    ]
    (results / "tables").mkdir(parents=True, exist_ok=True)
    atomic_text(results / "tables" / f"{name}.md", "\n".join(lines) + "\n")


def protocol(frame: pd.DataFrame) -> list[str]:
    """What all of paper 2's trials on its MLP take at these speeds; nothing where one of its methods is missing."""
    speeds = frame.set_index("case")
    if not set(TRIALS) <= set(speeds.index):
        return []
    hours = {
        way: sum(count * STEPS / speeds.loc[case, f"{way}_per_second"] for case, count in TRIALS.items()) / 3600
        for way in ("lone", "together")
    }
    return [
        f"Paper 2's protocol, {sum(TRIALS.values())} trials of {STEPS} steps, evaluations left out, at these speeds: "
        f"{hours['lone']:.1f} core-hours one by one, {hours['together']:.1f} together, that is "
        f"{30 * hours['together']:.0f} minutes of two cores.",
        "",
    ]
