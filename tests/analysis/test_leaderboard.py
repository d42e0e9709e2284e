"""The leaderboard on synthetic records: what is better, worse, equal, diverged, or missing shows as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import trim_mean

from clipbench.analysis import collect, load
from clipbench.analysis.leaderboard import Board, boards, chosen, listed, scores
from clipbench.analysis.leaderboard_page import NAME, section, table, write
from clipbench.errors import ConfigError
from tests.analysis.synthetic import write_run

SEEDS = 10
TASKS = (
    "first: {methods: all, together: 8}\nsecond: {methods: null, together: 1}\nabsent: {methods: all, together: 1}\n"
)
LOSSES = {"sgd": 1.0, "better": 0.8, "worse": 1.3, "lucky": 1.0, "often_dead": 0.9}
TRIVIAL = {"accuracy": 0.01, "loss": 2.0}


def final(method: str, seed: int, size: float) -> dict[str, object]:
    """A run's final entries: a test loss that varies by seed far more than between methods, and a share clipped."""
    luck = 1 + 0.3 * ((seed * 7) % SEEDS) / SEEDS
    value = size * luck * LOSSES[method]
    if method == "lucky":  # better on half of the seeds, worse on the others
        value *= 0.9 if seed % 2 else 1.1
    values = {"test_loss": value, "validation_loss": value, "train_share_clipped": 0.0 if method == "sgd" else 0.2}
    return {"final": values, "data": {"sum": "s", "trivial": TRIVIAL}, "tuned": "trial 1 of 4"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("board")
    for task, size, methods in (("first", 0.5, list(LOSSES)), ("second", 0.9, ["sgd", "better", "worse"])):
        for method in methods:
            for seed in range(SEEDS):
                dead = method == "often_dead" and seed < 6
                entries = final(method, seed, size) | ({"status": "diverged"} if dead else {})
                write_run(root, method, seed, f"{task}/cpu", "final", accuracy=False, **entries)  # type: ignore[arg-type]
    (root / "tasks.yaml").write_text(TASKS)
    collect(root)
    (root / "data" / "first__cpu__tuning.json").write_text(json.dumps({"idle": {"is_baseline": True}}))
    return root


@pytest.fixture(scope="module")
def found(results: Path) -> list[Board]:
    return boards(results, "cpu", results / "tasks.yaml")


def test_tasks_with_more_methods_have_a_board_of_their_own(found: list[Board]) -> None:
    assert [board.tasks for board in found] == [["first"], ["first", "second"]]
    assert {place.method for place in found[0].places} == {*LOSSES, "idle"}
    assert {place.method for place in found[1].places} == {"sgd", "better", "worse"}


def test_sgd_is_one_and_ratios_are_those_of_the_losses(results: Path) -> None:
    here = scores(results, load(results, "first/cpu"))
    assert trim_mean(list(here["sgd"].errors.values()), 0.25) == pytest.approx(1.0)
    for method in ("better", "worse"):
        ratios = [here[method].errors[seed] / here["sgd"].errors[seed] for seed in range(SEEDS)]
        assert ratios == pytest.approx([LOSSES[method]] * SEEDS)
    assert here["idle"].errors == here["sgd"].errors
    assert here["idle"].is_baseline
    assert here["better"].clipped == pytest.approx(0.2)


def test_a_diverged_run_has_the_trivial_predictors_error(results: Path) -> None:
    here = scores(results, load(results, "first/cpu"))
    losses = [final("sgd", seed, 0.5)["final"]["test_loss"] for seed in range(SEEDS)]  # type: ignore[index]
    assert here["often_dead"].errors[0] == pytest.approx(TRIVIAL["loss"] / trim_mean(losses, 0.25))
    assert here["often_dead"].diverged == pytest.approx(0.6)


def test_better_and_worse_are_told_and_luck_is_not(found: list[Board]) -> None:
    places = {place.method: place for place in found[1].places}
    assert places["better"].p < 0.05
    assert places["worse"].p < 0.05
    assert places["better"].better.estimate > 0.5 > places["worse"].better.estimate
    assert [place.method for place in found[1].places] == ["better", "sgd", "worse"]
    lucky = next(place for place in found[0].places if place.method == "lucky")
    assert lucky.p > 0.05


def test_the_table_says_what_is_known_and_what_not(found: list[Board]) -> None:
    rows = {row[0]: row[1:] for row in table(found[0]).rows}
    assert rows["sgd"][0].startswith("1.0")
    assert rows["idle (= sgd)"][5] == "0 %"
    assert rows["better"][2].endswith("*")
    assert rows["lucky"][2][-1] != "*"
    assert rows["often_dead"][3] == "60 %"
    assert rows["better"][8] == "–"  # no calibration


def test_files_and_section(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert section(results) == []  # the package's own tasks were not run here
    assert write(results) == []
    monkeypatch.setattr("clipbench.analysis.leaderboard.listed", lambda path=None: listed(results / "tasks.yaml"))
    written = write(results)
    assert [path.name for path in written if path.suffix != ".svg"] == [
        f"{NAME}.md", f"{NAME}.png", f"{NAME}_all_tasks.md", f"{NAME}_all_tasks.png"]  # fmt: skip
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write(results)] == before
    text = "\n".join(section(results))
    assert text.count("figures/leaderboard") == 2
    assert "## Leaderboard" in text


def test_unknown_tasks_are_named() -> None:
    tasks = listed()
    assert chosen(tasks, []) == tasks
    assert [task.name for task in chosen(tasks, ["leaderboard_pareto"])] == ["leaderboard_pareto"]
    with pytest.raises(ConfigError, match=r"tasks must be among leaderboard_mlp, .*, got leaderboard_mpl"):
        chosen(tasks, ["leaderboard_mpl"])
