"""`soda scaling report` and `soda scaling pitfalls`: figures and the HTML report."""

import argparse
from typing import Any

from soda_jax.commands._actions import (
    add_action,
    add_near_best,
    add_number,
    check_near_best,
    selection,
)
from soda_jax.errors import UserError


def add_figure_actions(actions: Any) -> None:
    """Adds both actions to `actions`, the result of `add_subparsers`."""
    report = add_action(
        actions,
        "report",
        "draw the figures of a table of runs and write an HTML report",
        "soda scaling report results.csv --fit=fit.json --out=report",
    )
    report.add_argument("table", metavar="TABLE", help="CSV or Parquet file with one row per run")
    report.add_argument("--out", metavar="DIR", required=True, help="folder of the report")
    report.add_argument(
        "--fit",
        metavar="FILE",
        help="JSON of soda scaling fit (fits the table); its selection is used",
    )
    report.add_argument(
        "--held_out", metavar="TABLE", help="runs that are predicted and were not fitted"
    )
    report.add_argument(
        "--select",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="use only these rows; may be repeated",
    )
    for name in ("budget", "params", "tokens", "loss"):
        report.add_argument(f"--{name}", metavar="COLUMN", help=f"column of the {name}")
    report.add_argument("--keep_repeats", action="store_true", help="as in soda scaling fit")
    add_near_best(report)
    report.add_argument("--title", help="heading of the page")
    add_number(report, "--bootstrap", 1000, "draws for the confidence intervals; 0 = none")
    add_number(report, "--seed", 0, "seed of the bootstrap")
    _add_formats(report)

    pitfalls = add_action(
        actions,
        "pitfalls",
        "draw the figures of docs/scaling.md from the paper's grid; needs no data",
        "soda scaling pitfalls --out=figures",
    )
    pitfalls.add_argument("--out", metavar="DIR", required=True, help="folder of the figures")
    _add_formats(pitfalls)


def _add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--formats", default="svg,png", help="formats of the figure files (%(default)s)"
    )


def run_report(args: argparse.Namespace) -> int:
    """Runs `soda scaling report`."""
    formats = _check(args)
    from soda_jax.scaling.figures.fitted import fitted_runs, read_fit_json
    from soda_jax.scaling.figures.report import write_scaling_report
    from soda_jax.scaling.fit import fit_table
    from soda_jax.scaling.table import read_runs

    if args.bootstrap < 0 or args.seed < 0:
        raise UserError(f"--bootstrap={args.bootstrap} and --seed={args.seed} must be at least 0")
    check_near_best(args.near_best)
    select = selection(args.select)
    names = ("budget", "params", "tokens", "loss")
    columns = {name: getattr(args, name) for name in names if getattr(args, name)}
    if args.fit:
        if select or columns or args.near_best:
            raise UserError(
                f"--fit={args.fit} has a selection and columns: give --fit or the options of a fit, "
                "not both"
            )
        fit = read_fit_json(args.fit)
        select, columns = fit["table"]["select"], fit["table"]["columns"]
        near_best = fit["table"].get("near_best", 0.0)
        runs = read_runs(args.table, select, columns, args.keep_repeats, near_best)
        fitted = fitted_runs(runs, fit, args.fit)
    else:
        runs = read_runs(args.table, select, columns, args.keep_repeats, args.near_best)
        fitted = fitted_runs(runs, fit_table(runs, args.bootstrap, args.seed))
    held_out = None
    if args.held_out:
        held_out = read_runs(args.held_out, {}, columns, args.keep_repeats)
    for line in write_scaling_report(args.out, fitted, held_out, args.title, formats):
        print(line)
    return 0


def run_pitfalls(args: argparse.Namespace) -> int:
    """Runs `soda scaling pitfalls`."""
    formats = _check(args)
    from soda_jax.scaling.figures.output import write_figures
    from soda_jax.scaling.figures.pitfalls import pitfall_figures

    files = write_figures(args.out, pitfall_figures(), formats)
    print(f"wrote {', '.join(files)} to {args.out}")
    return 0


def _check(args: argparse.Namespace) -> list[str]:
    """Returns the formats; raises UserError if they, the folder or the environment are wrong."""
    from soda_jax.files import check_output_folder
    from soda_jax.registry import split_names
    from soda_jax.report.figures import require_matplotlib
    from soda_jax.scaling.figures.output import check_formats

    formats = list(split_names(args.formats))
    check_formats(formats)
    check_output_folder(args.out, f"--out={args.out}")
    require_matplotlib()
    return formats
