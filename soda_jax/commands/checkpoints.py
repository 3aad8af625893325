"""`soda checkpoints`: lists the checkpoints of a run and verifies them."""

import argparse

SUMMARY = "list the checkpoints of a run, verify their digests, repair fingerprints"
EXAMPLE = "soda checkpoints runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda checkpoints`."""
    parser.add_argument("workdir", help="workdir of the run, or URL of a folder with checkpoints/")
    parser.add_argument(
        "--repair",
        metavar="DATASET",
        help="copy tokenizer, codec and fingerprints from an intact data set, then verify",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per step; returns 1 if a step is not intact.

    Raises:
      UserError: if the run has no checkpoints, or did not use the data set that `--repair` names.
    """
    from soda_jax.checkpoints import CheckpointReader, folder
    from soda_jax.errors import UserError
    from soda_jax.progress import track

    if args.repair:
        from soda_jax.train.repair import repair

        for line in repair(folder.local_workdir(args.workdir), args.repair):
            print(line)
    reader = CheckpointReader(folder.of_run(args.workdir))
    steps = reader.steps()
    if not steps:
        raise UserError(f"no checkpoints in {reader.directory}; is {args.workdir} a run's workdir?")
    flaws = {step: reader.flaw(step) for step in track(steps, "verifying")}
    for step, flaw in flaws.items():
        print(f"{step:>10}  {flaw or 'intact'}")
    return 1 if any(flaws.values()) else 0
