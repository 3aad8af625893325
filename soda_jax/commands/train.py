"""`soda train`: trains a model from a config, in one or several processes."""

import argparse

from soda_jax.commands._actions import add_processes

SUMMARY = "train a model from a config; resumes from the newest checkpoint, if any"
EXAMPLE = "soda train --config=configs/demo.py --workdir=runs/demo --config.model.num_layers=6"
PASSES_UNKNOWN_OPTIONS = True  # overrides --config.key=value are in args.unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda train`."""
    parser.add_argument(
        "--config", required=True, help="config file or name; --config.key=value changes a setting"
    )
    parser.add_argument(
        "--workdir", required=True, help="folder for checkpoints, metrics, tokenizer and codec"
    )
    parser.add_argument(
        "--profile_steps",
        metavar="A:B",
        help="write a profiler trace of steps A to B to WORKDIR/profile",
    )
    parser.add_argument(
        "--allow_data_change",
        action="store_true",
        help="resume even if the data has changed since the checkpoint",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use bit-for-bit deterministic kernels on GPU"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Trains the model; returns 0 when training is finished, 75 if it was preempted."""
    from soda_jax.commands._config import load_config
    from soda_jax.errors import UserError
    from soda_jax.schema import run_config

    profile = None
    if args.profile_steps:
        try:
            first, last = (int(part) for part in args.profile_steps.split(":"))
        except ValueError:
            first, last = 0, -1
        if not 0 < first <= last:
            raise UserError(f"--profile_steps={args.profile_steps}: give A:B with 0 < A <= B")
        profile = (first, last)
    config = run_config(load_config(args.config, args.unknown))
    if args.deterministic:
        import os

        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    from soda_jax.evaluate.loss import LossHook
    from soda_jax.parallel import hosts
    from soda_jax.train.loop import train

    hosts.start(args.coordinator, args.processes, args.process)
    hooks: list = []
    if config.evaluate.every_steps:
        hooks.append(LossHook(config.evaluate.every_steps, config.evaluate.batches))
    if config.evaluate.tasks:
        from soda_jax.evaluate.hook import EvaluationHook

        hooks.append(EvaluationHook(config, args.workdir))
    if config.export.every_steps:
        from soda_jax.convert.hook import ExportHook

        hooks.append(ExportHook(config.export.every_steps, config.export.dtype))
    # A divergence, which all processes raise, is printed once.
    with hosts.fail_together():
        return train(
            config,
            args.workdir,
            hooks=hooks,
            profile_steps=profile,
            allow_data_change=args.allow_data_change,
        )
