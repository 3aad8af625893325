"""`soda scaling`: plans and runs an IsoFLOP study, and fits scaling laws to its results."""

import argparse
import math
from pathlib import Path
from typing import Any

from soda_jax.commands._actions import (
    add_action,
    add_near_best,
    add_number,
    add_processes,
    check_near_best,
    selection,
)
from soda_jax.commands._scaling_figures import add_figure_actions, run_pitfalls, run_report
from soda_jax.errors import UserError

SUMMARY = "scaling laws: plan and run an IsoFLOP study, fit its losses, predict"
EXAMPLE = "soda scaling plan --out=plan.csv"
PASSES_UNKNOWN_OPTIONS = True  # overrides --config.key=value are in args.unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True)
    plan = add_action(
        actions, "plan", "print and write the runs of a study", "soda scaling plan --out=plan.csv"
    )
    plan.add_argument("--out", metavar="FILE", help="CSV file of the runs")
    plan.add_argument("--configs", metavar="DIR", help="also write a config file for each run")
    plan.add_argument(
        "--budgets", help="training FLOPs (3 × forward), comma-separated (those of the rules)"
    )
    plan.add_argument("--widths", help="candidate widths, comma-separated (those of the rules)")
    add_number(plan, "--vocabulary", 144_644, "number of ids")
    add_number(plan, "--sequence_length", 4096, "tokens per window")
    plan.add_argument("--rules", default="soda", help="registered set of rules (%(default)s)")
    plan.add_argument(
        "--data", default="", help="data set of the config files (the mixture of the SODA suite)"
    )
    plan.add_argument("--topology", help="CHIP:SHAPE as in soda plan; adds hours and chips")
    add_number(plan, "--slices", 1, "number of slices of the topology")
    plan.add_argument(
        "--compile", action="store_true", help="compile each step for the topology; takes minutes"
    )
    plan.add_argument(
        "--rate", type=float, help="FLOP/s of a chip, counted like the budget; adds hours and chips"
    )
    add_number(plan, "--chips", 1, "number of chips for --rate")

    execute = add_action(
        actions,
        "run",
        "train the runs of a plan; skips finished ones and resumes the others",
        "soda scaling run plan.csv --workdir=study --data=DIR --config.model.remat=none",
    )
    execute.add_argument("plan", metavar="PLAN", help="CSV file of soda scaling plan")
    execute.add_argument("--workdir", required=True, help="folder of the study")
    execute.add_argument(
        "--config",
        default="isoflop",
        help="config file or name with what the plan does not decide (%(default)s); "
        "--config.key=value changes a setting",
    )
    execute.add_argument(
        "--data", help="folder of the only data set, instead of those of the config"
    )
    add_number(execute, "--attempts", 3, "failed attempts after which a run has failed")
    add_processes(execute)

    fit = add_action(
        actions,
        "fit",
        "fit scaling laws to a table of runs",
        "soda scaling fit results.csv --select experiment=mine --out=fit.json",
    )
    fit.add_argument("table", metavar="TABLE", help="CSV or Parquet file with one row per run")
    fit.add_argument(
        "--select",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="use only these rows; may be repeated",
    )
    fit.add_argument("--out", metavar="FILE", help="JSON file of the result")
    for name in ("budget", "params", "tokens", "loss"):
        fit.add_argument(f"--{name}", metavar="COLUMN", help=f"column of the {name}")
    fit.add_argument(
        "--keep_repeats",
        action="store_true",
        help="fit runs of the same model, tokens and budget that differ in the loss",
    )
    add_near_best(fit)
    add_number(fit, "--bootstrap", 1000, "draws for the confidence intervals; 0 = none")
    add_number(fit, "--seed", 0, "seed of the bootstrap")

    predict = add_action(
        actions,
        "predict",
        "predict optimal sizes, losses and budgets from a fit",
        "soda scaling predict fit.json --budget=1e21",
    )
    predict.add_argument("fit", nargs="?", metavar="FIT", help="JSON file of soda scaling fit")
    predict.add_argument("--preset", help="published law instead of a fit: soda")
    predict.add_argument("--budget", help="training FLOPs, comma-separated: optimal N, D and loss")
    predict.add_argument("--params", type=float, help="parameters of a model, with --tokens")
    predict.add_argument("--tokens", type=float, help="loss and over-training of this model")
    predict.add_argument(
        "--target_loss", type=float, help="nats: the budget that reaches this loss"
    )
    predict.add_argument("--vocabulary", type=int, help="number of ids (that of the table)")
    predict.add_argument("--sequence_length", type=int, help="tokens per window (as in the table)")
    predict.add_argument("--rules", default="soda", help="registered set of rules (%(default)s)")
    predict.add_argument(
        "--head",
        choices=("full", "legal"),
        default="full",
        help="legal: how the optimum moves if only the rows of legal ids are multiplied (%(default)s)",
    )
    add_number(predict, "--text_share", 0.1, "--head=legal: share of the positions in text")
    predict.add_argument(
        "--head_rows",
        type=float,
        help="--head=legal: mean number of logits a token, of other layouts",
    )
    predict.add_argument("--out", metavar="FILE", help="JSON file of the predictions")
    metrics = add_action(
        actions,
        "metrics",
        "rank correlation of downstream scores with each NLL of a table of runs",
        "soda scaling metrics results.csv --scores=asr_wer,swuggy --out=metrics.csv",
    )
    metrics.add_argument("table", metavar="TABLE", help="CSV or Parquet file with one row per run")
    metrics.add_argument("--scores", required=True, help="columns of scores, comma-separated")
    metrics.add_argument("--losses", default="", help="columns of NLLs (loss and all loss/CLASS)")
    metrics.add_argument(
        "--select", metavar="COLUMN=VALUE", action="append", default=[], help="use only these rows"
    )
    metrics.add_argument("--out", metavar="FILE", help="CSV file of the correlations")
    add_number(metrics, "--bootstrap", 1000, "resamples of the runs for the intervals; 0 = none")
    add_number(metrics, "--seed", 0, "seed of the bootstrap")
    add_figure_actions(actions)


def run(args: argparse.Namespace) -> int:
    """Runs the action; returns its exit status."""
    if args.unknown and args.action != "run":
        raise UserError(f"unknown option {args.unknown[0]} for soda scaling {args.action}")
    actions = {"plan": _plan, "run": _run, "fit": _fit, "predict": _predict, "metrics": _metrics}
    actions |= {"report": run_report, "pitfalls": run_pitfalls}
    return actions[args.action](args)


def _plan(args: argparse.Namespace) -> int:
    from soda_jax.files import write_atomic
    from soda_jax.scaling.grid import plan_runs, to_csv
    from soda_jax.scaling.rules import make_rules
    from soda_jax.scaling.run_config import config_text
    from soda_jax.scaling.summary import plan_text

    for name in ("vocabulary", "sequence_length", "chips"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise UserError(f"--rate={args.rate} must be above 0")
    if args.rate is not None and args.topology:
        raise UserError("give --rate or --topology, not both")
    if args.compile and not args.topology:
        raise UserError("--compile needs --topology=CHIP:SHAPE")
    _check_out(args.out)
    if args.configs:
        _check_out(str(Path(args.configs) / "config.py"), "--configs")
    rules = make_rules(args.rules)
    budgets = _numbers("budgets", args.budgets) or rules.budgets
    widths = _numbers("widths", args.widths)
    if any(width != int(width) for width in widths):
        raise UserError(f"--widths={args.widths} must be whole numbers")
    plan = plan_runs(
        rules, budgets, args.vocabulary, args.sequence_length, [int(width) for width in widths]
    )
    rows = [run.row() for run in plan.runs]
    notes = _add_durations(args, plan.runs, rows)
    print(plan_text(plan, rows))
    print(*notes, sep="\n", end="\n" if notes else "")
    if args.out:
        write_atomic(args.out, to_csv(rows))
        print(f"wrote {args.out}")
    if args.configs:
        for run in plan.runs:
            write_atomic(Path(args.configs) / f"{run.name}.py", config_text(run, args.data))
        print(f"wrote {len(plan.runs)} configs to {args.configs}")
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.attempts < 1:
        raise UserError(f"--attempts={args.attempts} must be at least 1")
    from ml_collections import ConfigDict

    from soda_jax.commands._config import load_config, overridden
    from soda_jax.configs import base
    from soda_jax.scaling.grid import read_plan
    from soda_jax.scaling.run_config import check_base, check_overrides, job_of
    from soda_jax.scaling.study import Study

    runs = read_plan(args.plan)
    if not runs:
        raise UserError(f"{args.plan} has no runs; write it with soda scaling plan")
    names = overridden(args.unknown)
    check_overrides(runs[0], names)
    config = load_config(args.config, args.unknown)
    check_base(config)
    if args.data:
        config.data.sources = ConfigDict({"data": base.source(args.data, 1.0)})
    study = Study(args.workdir, [job_of(run, config, names) for run in runs])
    from soda_jax.parallel import hosts
    from soda_jax.scaling.execute import run_study

    hosts.start(args.coordinator, args.processes, args.process)
    return run_study(study, args.attempts)


def _add_durations(args: argparse.Namespace, runs: Any, rows: list[dict[str, Any]]) -> list[str]:
    """Adds hours and chips to the rows; returns a line for each run that cannot be trained."""
    if args.rate is None and not args.topology:
        return []
    from soda_jax.scaling.duration import at_rate, on_topology

    notes = []
    for run, row in zip(runs, rows, strict=True):
        if args.topology:
            time = on_topology(run, args.topology, args.slices, args.compile)
        else:
            time = at_rate(run, args.rate, args.chips)
        row["hours"] = "" if time.hours is None else time.hours
        row["chips"] = time.chips
        if time.why:
            notes.append(f"no hours for {run.name}: {time.why}")
    return notes


def _fit(args: argparse.Namespace) -> int:
    from soda_jax.files import write_atomic
    from soda_jax.scaling.fit import fit_table, to_text
    from soda_jax.scaling.summary import fit_text
    from soda_jax.scaling.table import read_runs

    if args.bootstrap < 0 or args.seed < 0:
        raise UserError(f"--bootstrap={args.bootstrap} and --seed={args.seed} must be at least 0")
    check_near_best(args.near_best)
    _check_out(args.out)
    select = selection(args.select)
    names = ("budget", "params", "tokens", "loss")
    columns = {name: getattr(args, name) for name in names if getattr(args, name)}
    runs = read_runs(args.table, select, columns, args.keep_repeats, args.near_best)
    result = fit_table(runs, args.bootstrap, args.seed)
    print(fit_text(result))
    if args.out:
        write_atomic(args.out, to_text(result))
        print(f"wrote {args.out}")
    return 0


def _metrics(args: argparse.Namespace) -> int:
    from soda_jax.files import write_atomic
    from soda_jax.registry import split_names
    from soda_jax.scaling.grid import to_csv
    from soda_jax.scaling.metrics import correlations, metrics_text

    if args.bootstrap < 0 or args.seed < 0:
        raise UserError(f"--bootstrap={args.bootstrap} and --seed={args.seed} must be at least 0")
    _check_out(args.out)
    scores, losses = split_names(args.scores), split_names(args.losses)
    table = correlations(
        args.table, scores, losses, selection(args.select), args.bootstrap, args.seed
    )
    print(metrics_text(table))
    if args.out:
        write_atomic(args.out, to_csv(table.rows))
        print(f"wrote {args.out}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from soda_jax.files import write_json
    from soda_jax.scaling.predict import SurfaceLaw, read_fit, with_legal_head
    from soda_jax.scaling.presets import PRESETS, PowerLaws
    from soda_jax.scaling.rules import make_rules
    from soda_jax.scaling.summary import prediction_text

    _check_out(args.out)
    if bool(args.fit) == bool(args.preset):
        raise UserError("give the JSON of a fit, or --preset=soda")
    if (args.params is None) != (args.tokens is None):
        raise UserError("--params and --tokens belong together")
    for name in ("params", "tokens", "target_loss", "vocabulary", "sequence_length", "head_rows"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value:g} must be above 0")
    law: SurfaceLaw | PowerLaws
    if args.head_rows is not None and args.head == "full":
        raise UserError(f"--head_rows={args.head_rows:g} needs --head=legal")
    if args.head == "legal" and args.preset:
        raise UserError(f"--head=legal needs a loss, which --preset={args.preset} does not have")
    if args.preset:
        if args.preset not in PRESETS:
            raise UserError(f"--preset={args.preset} is unknown; use {', '.join(PRESETS)}")
        law = PRESETS[args.preset]
    else:
        rules = make_rules(args.rules)
        law = read_fit(args.fit, rules, args.vocabulary, args.sequence_length)
        if args.head == "legal":
            law = with_legal_head(law, rules, args.text_share, args.head_rows)
    rows = [law.optimum(budget) for budget in _numbers("budget", args.budget)]
    if args.params is not None:
        rows.append(law.model(args.params, args.tokens))
    if args.target_loss is not None:
        rows.append(law.budget_for(args.target_loss))
    if not rows:
        raise UserError("give --budget, --params with --tokens, or --target_loss")
    print(prediction_text(rows, law.note))
    if args.out:
        write_json(args.out, {"note": law.note, "predictions": rows})
        print(f"wrote {args.out}")
    return 0


def _numbers(name: str, text: str | None) -> list[float]:
    """Returns the numbers of a comma-separated option, which must be above 0."""
    from soda_jax.registry import split_names

    try:
        values = [float(part) for part in split_names(text or "")]
    except ValueError:
        values = [math.nan]
    if not all(0 < value < math.inf for value in values):
        raise UserError(f"--{name}={text} must be numbers above 0, separated by commas")
    return values


def _check_out(file: str | None, option: str = "--out") -> None:
    from soda_jax.files import check_output_folder

    if file and Path(file).is_dir():
        raise UserError(f"{option}={file} is a folder: give the path of a file")
    if file:
        check_output_folder(Path(file).parent, f"{option}={file}")
