"""`soda report`: turns the results of runs into one HTML page."""

import argparse

SUMMARY = "write a page that compares runs: scores next to the paper's, curves, samples"
EXAMPLE = "soda report runs/a runs/b --output=report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda report`."""
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="workdir of a run (evaluation.json, evaluations/, metrics.jsonl, samples/), or a JSON file of "
        "soda evaluate",
    )
    parser.add_argument("--output", default="report.html", help="HTML file (%(default)s)")
    parser.add_argument(
        "--audio",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with results.jsonl and sound files, see docs/report.md; may be repeated",
    )
    parser.add_argument(
        "--samples", type=int, default=12, help="samples of each folder to show (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Reads the runs and writes the page."""
    from pathlib import Path

    from soda_jax.errors import UserError

    if args.samples < 0:
        raise UserError(f"--samples={args.samples} must be at least 0")

    from soda_jax.files import check_output
    from soda_jax.report.comparison import write_comparison
    from soda_jax.report.recordings import read_recordings
    from soda_jax.report.runs import read_runs

    runs, output = read_runs(args.runs), Path(args.output)
    check_output(output, "--output")
    folders = [(run.samples, run.label) for run in runs if run.samples]
    folders += [(Path(folder), folder) for folder in args.audio]
    recordings = [read_recordings(folder, title, args.samples) for folder, title in folders]
    write_comparison(output, runs, recordings)
    print(f"open {output}")
    return 0
