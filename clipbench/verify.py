"""The command `python -m clipbench.verify`: published numbers beside own ones, old code beside new."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipbench.cli.command import command
from clipbench.cli.compose import CONFIG_PATH, compose, compose_node
from clipbench.cli.outside import taken
from clipbench.cli.parser import Parser
from clipbench.errors import ConfigError

DESCRIPTION = """\
Repeat a published run and print both numbers, or prove that an edit changes no number.

  verify EXPERIMENT --sample 1   one published run, drawn at random, trained again; published and own numbers
  verify --equal OLD             a short run of every method of every published experiment under the code of the git
                                 commit OLD and under this one: first steps, an evaluation, a checkpoint, a resume;
                                 where all are equal bit for bit, the pairs of fingerprints are entered in
                                 conf/equal.yaml and count as the same from then on
"""
EPILOG = """\
--config-dir DIR adds a folder of configs, --allow PACKAGE a package that they may name.

examples:
  python -m clipbench.verify heavy_tailed_mlp/cpu --sample 1
  python -m clipbench.verify heavy_tailed_mlp/cpu --method ps_clip --seed 0
  python -m clipbench.verify --equal HEAD~1
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    main = Parser("python -m clipbench.verify", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    main.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default with --equal: all published ones")
    main.add_argument("--results", type=lambda text: Path(text).expanduser(), default=Path("results"), metavar="DIR")
    main.add_argument("--equal", metavar="OLD", help="a git commit of this checkout")
    main.add_argument("--sample", type=int, default=1, metavar="N", help="published runs to repeat (default: 1)")
    main.add_argument("--method", help="only runs of this method")
    main.add_argument("--seed", type=int, help="only the run of this seed")
    main.add_argument("--data", metavar="DIR", help="folder of the data (default: that of the configuration)")
    return main


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 where old and new code differ. Raises ConfigError for bad input."""
    args = parser().parse_args(taken(argv))
    if args.sample < 1:
        raise ConfigError(f"--sample must be >= 1, got {args.sample}")
    if args.equal is not None:
        return _equal(args)
    if not args.experiments:
        raise ConfigError("EXPERIMENT must be given, as heavy_tailed_mlp/cpu (or --equal OLD)")
    for experiment in args.experiments:
        _repeat(args, experiment)
    return 0


def _repeat(args: argparse.Namespace, experiment: str) -> None:
    from clipbench.analysis.load import load
    from clipbench.runs.equal import same
    from clipbench.runs.verification import choose, repeat

    runs = load(args.results, experiment).runs.to_dict("records")
    words = [f"data.root={args.data}"] if args.data else []
    base = compose([*([] if experiment == "single" else [f"experiment={experiment}"]), *words])
    for published in choose(runs, args.sample, args.method, args.seed):
        print(f"training anew: {experiment}, {published['method']} seed {published['seed']}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            both = repeat(published, base, Path(folder))
        print(f"{published['method']} seed {published['seed']}: {both.own['status']}")
        print("\n".join(both.lines()), flush=True)
        if (size := published.get("together")) is not None and size == size:  # a table's gap is NaN
            print(f"  published as one of {int(size)} runs that went together: equal to a lone run up to rounding")
        if not same(published.get("fingerprint"), both.own["fingerprint"]):
            print(f"  made by other code: {published.get('fingerprint')} then, {both.own['fingerprint']} now")


def _equal(args: argparse.Namespace) -> int:
    from hydra import initialize_config_dir

    from clipbench.analysis.load import experiments
    from clipbench.runs import equal
    from clipbench.runs.short_run import STEPS
    from clipbench.runs.verification import compare, resolved
    from clipbench.tuning.plan import swept_methods

    names = args.experiments or [name for name in experiments(args.results) if name != "single"]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        cases = [
            (name, method, together)
            for name in names
            for method in dict.fromkeys(
                [*swept_methods(compose_node([f"experiment={name}"])), *_published_methods(args.results, name)]
            )
            for together in ((False, True) if _went_together(args.results, name, method) else (False,))
        ]
    commit = resolved(args.equal)
    found = compare(commit, [case for case in cases if args.method in (None, case[1])])
    for one in found:
        word = "equal" if one.equal else "new" if one.old is None else "DIFFERENT"
        codes = f"{one.old.fingerprint if one.old else '-'}, {one.new.fingerprint}"
        print(f"  {one.experiment} {one.method}{' together' if one.together else ''}: {word} ({codes})")
    if any(one.old is not None and not one.equal for one in found):
        print("nothing entered: an edit changed a number", file=sys.stderr)
        return 1
    added = equal.enter([
        {
            "old": one.old.fingerprint, "new": one.new.fingerprint, "experiment": one.experiment, "method": one.method,
            "together": one.together, "commit": commit, "steps": STEPS, "rows": one.new.rows, "digest": one.new.digest,
        }
        for one in found if one.old is not None
    ])  # fmt: skip
    print(f"{added} pairs of fingerprints entered in {equal.PATH}" if added else "nothing to enter: all are the same")
    return 0


def _published_methods(results: Path, experiment: str) -> list[str]:
    """The methods of an experiment's collected runs: more than its sweep has, where others were asked for. A study's
    runs carry its own name there, which is no method.
    """
    from clipbench.analysis.load import load
    from clipbench.runs.archive import data_file

    path = data_file(results, experiment)
    if not path.exists():
        return []
    runs = load(results, experiment).runs
    trained = [not (config.get("study") or {}).get("_target_") for config in runs["config"]]
    return sorted({method for method, kept in zip(runs["method"], trained, strict=True) if kept})


def _went_together(results: Path, experiment: str, method: str) -> bool:
    """Whether published runs of the method in the experiment were members of one program; some rules go alone."""
    from clipbench.analysis.load import load
    from clipbench.runs.archive import data_file

    if not data_file(results, experiment).exists():
        return False
    runs = load(results, experiment).runs
    runs = runs[runs["method"] == method]
    return "together" in runs and bool(runs["together"].notna().any())


if __name__ == "__main__":
    command(lambda: sys.exit(main(sys.argv[1:])))
