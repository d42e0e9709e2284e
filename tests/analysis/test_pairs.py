"""The papers' rules against each other."""

from __future__ import annotations

import numpy as np
import pytest

from clipbench.analysis import collect, load, panels
from clipbench.analysis.page.pairs import duel_section, duels
from tests.analysis.synthetic import write_run


def write(root, method, shift, seeds=6, **settings):
    for seed in range(seeds):
        loss = 1.0 + 0.1 * seed + shift + 0.001 * (-1) ** seed * (method == "ps_clip")
        write_run(root, method, seed=seed, accuracy=False, final={"test_loss": loss}, **settings)


def found(root):
    collect(root)
    return duels(panels(load(root, "toy/cpu"))[0], root)


def test_every_pair_is_the_paired_difference_first_less_second(tmp_path):
    for method, shift in (("norm_clip", 0.0), ("ps_clip", -0.1), ("spectral_clip", 0.2)):
        write(tmp_path, method, shift)
    own = {(duel.rule, duel.against): duel for duel in found(tmp_path)}
    assert list(own) == [("ps_clip", "norm_clip"), ("spectral_clip", "norm_clip"), ("spectral_clip", "ps_clip")]
    assert [duel.word for duel in own.values()] == ["better", "worse", "worse"]
    assert np.allclose([duel.difference.estimate for duel in own.values()], [-0.1, 0.2, 0.3])
    assert {duel.difference.n for duel in own.values()} == {6}, "seeds are pairs, so their own spread is gone"
    assert own["spectral_clip", "ps_clip"].difference.high - 0.3 == pytest.approx(0.00115, rel=0.01)


def test_a_rule_with_two_settings_or_another_optimizer_has_no_pair(tmp_path):
    write(tmp_path, "norm_clip", 0.0)
    write(tmp_path, "ps_clip", -0.1)
    write(tmp_path, "ps_clip", -0.1, lr=0.2)
    adam = {"optimizer": {"name": "adam", "lr": 0.1}}
    write(tmp_path, "spectral_clip", 0.2, optimizer="adam", config=adam)
    assert found(tmp_path) == []
    assert duel_section([]) == ""


def test_the_section_counts_what_the_comparisons_say(tmp_path):
    for method, shift in (("norm_clip", 0.0), ("ps_clip", -0.1)):
        write(tmp_path, method, shift)
    (duel,) = found(tmp_path)
    other = duel._replace(panel="other/cpu", word="no difference shown")
    text = duel_section([duel, other])
    assert "- `ps_clip` against `norm_clip`: better in 1, open in 1 of 2 comparisons.\n" in text
    assert "| toy/cpu | as given | ps_clip | norm_clip | test loss | −0.1" in text


def test_tuned_settings_are_told_from_given_ones(tmp_path):
    for method, shift in (("norm_clip", 0.0), ("ps_clip", -0.1)):
        write(tmp_path, method, shift, role="final", tuned="trial 1 of 4")
    assert "| toy/cpu | tuned | ps_clip |" in duel_section(found(tmp_path))
