"""`soda plan`: predicts memory, speed and duration of a run on other machines."""

import argparse

SUMMARY = "compile the training step for other machines: memory, speed and duration of the run"
EXAMPLE = "soda plan --config=configs/soda_4b.py --topology=v5p:4x4x8 --price_per_chip_hour=2.0"
PASSES_UNKNOWN_OPTIONS = True  # overrides --config.key=value are in args.unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda plan`."""
    parser.add_argument(
        "--config", required=True, help="config file or name; --config.key=value changes a setting"
    )
    parser.add_argument(
        "--topology",
        required=True,
        help="CHIP:SHAPE: v2, v3, v4, v5e, v5p, v6e, tpu7x, a100, a100-80gb, h100, h200, b200 and "
        "others, as in v5p:4x4x8, v5e:4x8 or h100:8",
    )
    parser.add_argument("--slices", type=int, default=1, help="number of slices (default 1)")
    parser.add_argument(
        "--data", help="data set whose vocabulary to use (default: SODA's 144,644 ids)"
    )
    parser.add_argument(
        "--price_per_chip_hour", type=float, help="price of a chip-hour; prints the cost of the run"
    )
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat and micro-batches; print what fits"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=12,
        help="maximum number of candidates that --search compiles (default %(default)s)",
    )
    parser.add_argument(
        "--text_share",
        type=float,
        default=0.1,
        help="share of text positions, for config.model.head=legal (default %(default)s)",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="compile nothing; the default for GPUs that this machine does not have",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints the plan; returns 0 if the step fits, 1 if it does not."""
    from soda_jax.commands._config import load_config
    from soda_jax.errors import UserError
    from soda_jax.plan.topologies import parse_topology, set_compiler_environment

    topology = parse_topology(args.topology, args.slices)
    price = args.price_per_chip_hour
    if price is not None and not 0 <= price < float("inf"):
        raise UserError(f"--price_per_chip_hour={price} must be finite and at least 0")
    if not 0 <= args.text_share <= 1:
        raise UserError(f"--text_share={args.text_share} must be from 0 to 1")
    if args.candidates < 1:
        raise UserError(f"--candidates={args.candidates} must be at least 1")
    config = load_config(args.config, args.unknown)
    if topology.is_tpu:
        set_compiler_environment()  # before anything imports jax
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.plan.run import Planner, show
    from soda_jax.plan.search import search
    from soda_jax.tokens.vocabulary import VocabularyLayout

    layout = Manifest.load(args.data).layout if args.data else VocabularyLayout.soda()
    planner = Planner(config, layout, topology, price, args.estimate, args.text_share)
    if args.search:
        return search(planner, args.candidates, args.json)
    return show(planner, args.json)
