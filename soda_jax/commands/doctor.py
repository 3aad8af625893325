"""`soda doctor`: checks a machine or a pod before a run."""

import argparse

SUMMARY = "check this machine, or all hosts of a pod, before a run (about a minute)"
EXAMPLE = "soda doctor --config=configs/demo.py --workdir=runs/demo"
PASSES_UNKNOWN_OPTIONS = True  # overrides --config.key=value are in args.unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda doctor`, a subset of those of `soda train`."""
    parser.add_argument("--config", help="config of the run; its mesh and data are checked")
    parser.add_argument(
        "--workdir", help="workdir of the run; a small test checkpoint is saved, then removed"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="as in soda train")
    parser.add_argument("--processes", type=int, help="as in soda train")
    parser.add_argument("--process", type=int, help="as in soda train")


def run(args: argparse.Namespace) -> int:
    """Prints one line per finding; returns 1 if the run would fail."""
    from soda_jax.errors import UserError

    config = None
    if args.config:
        from soda_jax.commands._config import load_config

        config = load_config(args.config, args.unknown)
    elif args.unknown:
        raise UserError(f"{args.unknown[0]}: overrides need --config")
    from soda_jax.checkpoints.folder import local_workdir
    from soda_jax.parallel import hosts

    workdir = local_workdir(args.workdir) if args.workdir else None
    hosts.start(args.coordinator, args.processes, args.process)
    from soda_jax.doctor.run import examine

    return examine(config, workdir)
