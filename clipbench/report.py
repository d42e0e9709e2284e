"""`python -m clipbench.report`: records → results/data → tables, figures and REPORT.md."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from clipbench.analysis import collect, experiments
from clipbench.analysis.collect import bring, merge_files
from clipbench.analysis.document import summary, write_figures, write_tables
from clipbench.analysis.embed import embed
from clipbench.analysis.groups import BASELINE
from clipbench.analysis.page import write_report
from clipbench.cli.parser import Parser
from clipbench.cli.streams import outlast
from clipbench.errors import RecordError
from clipbench.wording import amount

DESCRIPTION = """\
Turn the records of runs into tables and figures.

  collect   records (results/runs) -> one file per experiment (results/data)
  tables    results/data -> results/tables/*.md
  figures   results/data -> results/figures/*.png and *.svg
  summary   collect one experiment, print its table, draw its figure
  merge     two versions of a collected file -> one, for git
  all       collect, tables, figures, and results/REPORT.md and report.html
"""
EPILOG = """\
examples:
  python -m clipbench.report all
  python -m clipbench.report summary ps_clip_alexnet_cifar100/cpu
  python -m clipbench.report collect --roots results /mnt/node1/results /mnt/node2/results
  python -m clipbench.report tables --target 0.25 ps_clip_alexnet_cifar100/cpu
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    main = Parser("python -m clipbench.report", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = main.add_subparsers(dest="command", required=True, metavar="{collect,tables,figures,summary,merge,all}")
    files = commands.add_parser("merge", description=_line("merge"))
    files.add_argument("base", type=Path, help="the version that both come from (%%O)")
    files.add_argument("ours", type=Path, help="our version, which becomes the union by run id (%%A)")
    files.add_argument("theirs", type=Path, help="their version (%%B)")
    for name in ("collect", "tables", "figures", "summary", "all"):
        _options(commands.add_parser(name, description=_line(name)), name)
    return main


def _options(command: argparse.ArgumentParser, name: str) -> None:
    """The arguments of the command `name`."""
    command.add_argument("--results", type=_folder, default=Path("results"), metavar="DIR", help="default: results")
    if name == "summary":
        command.add_argument("experiment", help='the name of one experiment, or "single" for runs outside of any')
        command.add_argument("--dataset", help="only this dataset")
        command.add_argument("--model", help="only this model")
        command.add_argument(
            "--into", type=_folder, metavar="DIR",
            help="collect into this folder and draw there, leaving the results folder's data and figures as they are",
        )  # fmt: skip
    else:
        command.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all there are")
    if name in ("collect", "all", "summary"):
        command.add_argument(
            "--roots", nargs="+", type=_folder, default=[], metavar="DIR", action="extend",
            help="results folders to merge, as from several machines (default: that of --results)",
        )  # fmt: skip
    if name in ("collect", "all", "summary"):
        command.add_argument(
            "--data", nargs="+", type=_folder, default=[], metavar="DIR", action="extend",
            help="results folders of others, whose collected data are added to yours",
        )  # fmt: skip
    if name != "collect":
        command.add_argument("--baseline", default=BASELINE, metavar="METHOD", help=f"default: {BASELINE}")
    if name == "figures":
        command.add_argument(
            "--curves", nargs="+", default=[], metavar="SPLIT/METRIC", type=_curve,
            help="what to draw, as train/loss validation/loss (default: by what there is)",
        )  # fmt: skip
    if name == "all":
        command.add_argument("--readme", type=Path, metavar="FILE", help="refill the generated tables in this document")
    if name in ("tables", "all"):
        command.add_argument(
            "--target", type=float, metavar="VALUE",
            help="validation accuracy (0 to 1) or loss to reach (default: most of the best's progress)",
        )  # fmt: skip


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _curve(text: str) -> tuple[str, str]:
    split, _, metric = text.partition("/")
    if split not in ("train", "validation", "test") or not metric:
        raise argparse.ArgumentTypeError(f"must be SPLIT/METRIC as in validation/loss, got {text}")
    return split, metric


def _line(name: str) -> str:
    return next(
        line.strip().removeprefix(name).strip() for line in DESCRIPTION.splitlines() if line.strip().startswith(name)
    )


def _collect(args: argparse.Namespace, names: Sequence[str]) -> None:
    done = collect(args.results, args.roots, names)
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for name, count in done.runs.items():
        print(f"collected {name}: {amount(bring(args.results, name) or count, 'run')}")


def _collected(args: argparse.Namespace) -> Path:
    """The results folder that holds all runs of the experiment: its own, or `--into` with what is published too."""
    bring(args.results if args.into is None else args.into, args.experiment, args.data)
    if args.into is None:
        _collect(args, [args.experiment])
        return Path(args.results)
    (args.into / "data").mkdir(parents=True, exist_ok=True)
    bring(args.into, args.experiment, [args.results])
    for warning in collect(args.into, args.roots or [args.results], [args.experiment]).warnings:
        print(f"warning: {warning}", file=sys.stderr)
    calibration = args.results / "data" / "calibration.parquet"
    if calibration.exists():
        shutil.copy(calibration, args.into / "data")
    return Path(args.into)


def _summary(args: argparse.Namespace) -> None:
    results = _collected(args)
    tables, figures = summary(results, args.experiment, args.baseline, args.dataset, args.model)
    if not tables:
        raise ValueError(f"experiment must have finished runs of that dataset and model, got {args.experiment}")
    said: set[str] = set()
    for table in tables:  # a note that holds for several tables stands below the first
        print(f"\n{table._replace(notes=[note for note in table.notes if note not in said]).text()}")
        said |= set(table.notes)
    for path in figures:
        print(f"\nfigure: {path}")


def _names(args: argparse.Namespace) -> list[str]:
    names = args.experiments or experiments(args.results)
    if not names:
        raise ValueError(f"results must hold collected data (run `collect` first), got {args.results}")
    return list(names)


def _benchmarks(results: Path) -> list[Path]:
    """The benchmarks' and calibrations' tables and figures, made again from their data."""
    from clipbench.bench.rebuild import rebuild  # torch comes with it

    return [results / "tables" / f"{name}.md" for name in rebuild(results)]


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks. Raises ValueError for what is not there."""
    if args.command == "merge":
        for line in merge_files(args.ours, args.theirs):
            print(f"warning: {line}", file=sys.stderr)
        return
    if args.command == "summary":
        _summary(args)
        return
    if args.command in ("collect", "all"):
        for other in args.data:
            for name in args.experiments or experiments(other):
                bring(args.results, name, [other])
        _collect(args, args.experiments)
        if args.command == "collect":
            return
    names = _names(args)
    written: list[Path] = []
    if args.command in ("tables", "all"):
        written += write_tables(args.results, names, args.baseline, args.target)
    if args.command in ("figures", "all"):
        written += write_figures(args.results, names, args.baseline, getattr(args, "curves", ()))
    if args.command == "all":
        if args.experiments:  # the report shows every experiment: those not asked for need their tables too
            others = [name for name in experiments(args.results) if name not in names]
            written += write_tables(args.results, others, args.baseline)
        written += _benchmarks(args.results)
        written += write_report(args.results)
        if args.readme is not None:
            for name in embed(args.readme):
                print(f"warning: {args.readme} shows {name}, which is not there", file=sys.stderr)
            written.append(args.readme)
    for path in written:
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr for bad input."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    outlast()
    sys.exit(main())
