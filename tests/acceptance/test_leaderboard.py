"""The leaderboard as a command: an own method joins what was run before, and only its runs are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from clipbench import leaderboard
from clipbench.errors import ConfigError

OWN = """\
name: half_clip
estimator: {_target_: clipbench.estimators.Batch}
clipper: {_target_: clipbench.clipping.NormClip, threshold: 2.0}
"""


def finished(results: Path) -> dict[str, float]:
    """Folder of every record → when it was finished."""
    return {str(path.parent): path.stat().st_mtime for path in results.rglob("run.json")}


@pytest.mark.slow
def test_an_own_method_costs_its_own_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    words = ["size=smoke", "tasks=leaderboard_mlp", f"paths.results={results}", f"paths.tuned={tmp_path}/tuned",
             "device=cpu", "threads=1"]  # fmt: skip
    leaderboard.main([*words, "methods=norm_clip,median"])
    before = finished(results)
    text = (results / "tables" / "leaderboard.md").read_text()
    assert "| norm_clip" in text
    assert "| median |" in text or "| median (= sgd)" not in text
    assert (results / "figures" / "leaderboard.png").exists()
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "half_clip.yaml").write_text(OWN)
    leaderboard.main([*words, "methods=norm_clip,median,half_clip", "--config-dir", str(folder.parent)])
    after = finished(results)
    assert {place: time for place, time in after.items() if place in before} == before
    added = [json.loads(Path(place, "run.json").read_text())["method"] for place in after if place not in before]
    assert set(added) == {"half_clip"}
    assert "| half_clip" in (results / "tables" / "leaderboard.md").read_text()
    assert "half_clip final seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size=paper"], "size must be smoke or cpu, got paper"),
        (["tasks=leaderboard_mpl"], r"tasks must be among leaderboard_mlp, .*, got leaderboard_mpl"),
        (["method=sgd"], "method=sgd is set by clipbench.leaderboard"),
        (["experiment=rates/cpu"], "experiment=rates/cpu is set by clipbench.leaderboard"),
        (["sise=cpu"], r"sise is not an option .did you mean size."),
        (["--size", "cpu"], "--size must be an option as key=value"),
    ],
)
def test_bad_options(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        leaderboard.main(words)
    assert not GlobalHydra.instance().is_initialized()
