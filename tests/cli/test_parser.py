"""Commands with flags: one line for what is wrong, with what was probably meant, and the status of bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipbench import calibrate, report, verify
from clipbench.bench import spectral, sweep
from clipbench.errors import ConfigError

CASES = [
    (report.main, ["sumary", "toy/cpu"], "sumary must be one of merge, collect, tables, figures, summary, all "
                                         "(did you mean summary?)"),
    (report.main, ["summary"], "the following arguments are required: experiment"),
    (report.main, ["tables", "--reslts"], "unrecognized arguments: --reslts (did you mean --results?)"),
    (verify.main, ["--smaple"], "unrecognized arguments: --smaple (did you mean --sample?)"),
    (verify.main, ["--seed", "one"], "argument --seed: invalid int value: 'one'"),
    (spectral.main, ["--rounds", "0"], "argument --rounds: must be a whole number >= 1, got 0"),
    (spectral.main, ["--results", "/dev/null/x"], "argument --results: must be a writable folder, got /dev/null/x "
                                                  "(Not a directory)"),
    (sweep.main, ["--runs", "-1"], "argument --runs: must be a whole number >= 1, got -1"),
    (spectral.main, ["--smokes"], "unrecognized arguments: --smokes (did you mean --smoke?)"),
]  # fmt: skip


@pytest.mark.parametrize(("main", "words", "said"), CASES, ids=[" ".join(case[1]) for case in CASES])
def test_one_line(
    main: Callable[[list[str]], object], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"clipbench: {said} (python -m clipbench.")
    assert line.endswith(" --help)\n")
    assert line.count("\n") == 1


def test_a_study_has_no_step_to_calibrate() -> None:
    with pytest.raises(ConfigError, match="experiment must be one that trains a network, got estimator_error/smoke"):
        calibrate.main(["experiment=estimator_error/smoke"])
