"""The figures of claims and of tuning: what is where, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from clipbench.analysis import collect, load
from clipbench.analysis.claim_plots import MOST_ROWS, claim_figure
from clipbench.analysis.claims.judged import JudgedClaim, claims
from clipbench.analysis.claims.statement import Decision, Statement
from clipbench.analysis.sensitivity import expected_best
from clipbench.analysis.stats import Interval
from clipbench.analysis.tuning_plots import trials, tuning_figures
from tests.analysis.synthetic import write_run


def outcome(*statements: Statement) -> JudgedClaim:
    return JudgedClaim(claims()[0], Decision("not decided", "", statements))


def one(text: str, estimate: float, side: str = "above", **options) -> Statement:
    return Statement(text, Interval(estimate, estimate - 0.1, estimate + 0.1, 10), side, **options)


def places(figure) -> list[tuple[float, float]]:
    """(estimate's x, y) of every statement of the first panel, from the top."""
    points = [np.asarray(line.get_xydata(), dtype=float) for line in figure.axes[0].get_lines()]
    return sorted(((float(p[0][0]), float(p[0][1])) for p in points if len(p) == 1), key=lambda xy: -xy[1])


def test_the_claimed_side_is_right_of_zero() -> None:
    figure = claim_figure(outcome(one("a", 0.5), one("b", 0.5, "below"), one("c", -0.3, "below", bound=-0.1)))
    assert [x for x, _ in places(figure)] == pytest.approx([0.5, -0.5, 0.2])
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert list(reversed(ticks)) == ["a", "b", "c"]


def test_log_ratios_are_ratios_to_their_bound() -> None:
    figure = claim_figure(outcome(one("a", math.log(0.5), "below", bound=math.log(2), unit="log")))
    assert places(figure)[0][0] == pytest.approx(4.0)
    assert figure.axes[0].get_xscale() == "log"


def test_what_stands_beside_is_hollow_and_the_farthest_are_left_out() -> None:
    beside = [one(f"beside {i}", float(i), required=False) for i in range(MOST_ROWS + 5)]
    figure = claim_figure(outcome(one("required", 1.0), *beside))
    shown = places(figure)
    assert len(shown) == MOST_ROWS
    assert max(x for x, _ in shown) == MOST_ROWS - 2
    marks = [line for line in figure.axes[0].get_lines() if len(np.asarray(line.get_xydata())) == 1]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False] + [True] * (MOST_ROWS - 1)


def test_a_long_statement_is_broken_into_lines_and_nothing_of_it_is_cut() -> None:
    text = " ".join(f"word{i}" for i in range(30))
    short, long = (claim_figure(outcome(one(words, 0.5), one("b", 0.1))) for words in ("a", text))
    label = next(t.get_text() for t in long.axes[0].get_yticklabels() if t.get_text().startswith("word0"))
    assert label.replace("\n", " ") == text
    assert max(map(len, label.split("\n"))) <= 64
    assert long.get_figheight() > short.get_figheight()


def test_without_an_effect_there_is_no_figure() -> None:
    assert claim_figure(outcome()) is None
    assert claim_figure(outcome(one("nothing", math.nan))) is None


def tuned(root: Path) -> None:
    """12 trials of two methods; of norm_clip the threshold varies, and two trials diverge."""
    for trial in range(12):
        lr = 10 ** (-3 + trial / 6)
        for method in ("sgd", "norm_clip"):
            clipper = {"threshold": 0.5 * (trial + 1), "eps": 1e-6} if method == "norm_clip" else {}
            write_run(
                root, method, role="tune", trial=trial, lr=lr, steps=100, quality=1.0 + trial / 10,
                status="diverged" if trial > 9 and method == "norm_clip" else "ok",
                config={"method": {"name": method, "clipper": clipper}},
            )  # fmt: skip
    collect(root)


def test_trials_are_read_with_the_option_that_varies(tmp_path: Path) -> None:
    tuned(tmp_path)
    sgd, norm = trials(load(tmp_path, "toy/cpu"), "validation_loss")
    assert (sgd.method, sgd.option, norm.method, norm.option) == ("sgd", None, "norm_clip", "threshold")
    assert norm.values.tolist() == [0.5 * (trial + 1) for trial in range(12)]
    assert np.isinf(norm.loss).tolist() == [False] * 10 + [True] * 2
    figures = tuning_figures(load(tmp_path, "toy/cpu"))
    assert sorted(figures) == ["budget", "map"]
    curves = [np.asarray(line.get_xydata(), dtype=float) for line in figures["budget"].axes[0].get_lines()]
    assert curves[0][:, 1] == pytest.approx([expected_best(sgd.loss, int(count)) for count in curves[0][:, 0]])
    worst = max(
        sgd.loss.max(), norm.loss[:10].max()
    )  # what a diverged trial counts as: never better than one that ended
    capped = np.where(np.isfinite(norm.loss), norm.loss, worst)
    assert curves[1][:, 1] == pytest.approx([expected_best(capped, int(count)) for count in curves[1][:, 0]])
    titles = [axis.get_title() for axis in figures["map"].axes]
    assert "norm clip" in titles
    assert "sgd" not in titles


def test_few_trials_say_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, role="tune", trial=0)
    collect(tmp_path)
    assert tuning_figures(load(tmp_path, "toy/cpu")) == {}
