"""Speed of the step of `soda train` and of other trainers, on this machine in one alternating run.

    python benchmarks/train_step.py                                   # all sides that are installed
    python benchmarks/train_step.py --shapes=135m,600m,1.7b           # the default on a GPU
    python benchmarks/train_step.py --transformers_python=PATH --levanter_python=PATH --maxtext_python=PATH

Every side trains a Qwen3 of the same shape (normalized queries and keys, grouped queries, SwiGLU, RMSNorm,
untied embedding and head) on the same number of random tokens: loss, gradients, clipping of their norm,
AdamW. f32 on a CPU, bf16 arithmetic and f32 parameters on an accelerator. A side that is not installed is
reported and left out. MFU counts 6 FLOPs per matmul parameter and token and the causal half of
attention, relative to the data sheet's bf16 peak; on a CPU it is relative to the rate of a matrix
product that is timed at every turn.
"""

import argparse
import dataclasses
import importlib
import statistics
import sys
from pathlib import Path

from _machine import describe_machine
from _results import Results, parse, written
from _sides import Command, Turns, platform_here, take_turns

from soda_jax.configs import base
from soda_jax.errors import UserError
from soda_jax.model import VocabularyBlocks, decoder_config
from soda_jax.tokens.vocabulary import VocabularyLayout

PARITY = Path(__file__).resolve().parents[1] / ".parity" / "bin" / "python"
PARAMETER_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batch; the vocabulary is text, markers and `codebooks` of `codebook_size`."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    codebook_size: int
    batch: int
    sequence: int
    codebooks: int = 8

    @property
    def tokens(self) -> int:
        """Returns the tokens of a step."""
        return self.batch * self.sequence

    def flops(self) -> float:
        """Returns the model FLOPs of a step, without recomputation."""
        fields = base.default().model.to_dict()
        fields.update({name: getattr(self, name) for name in fields if hasattr(self, name)})
        coded = self.codebooks * self.codebook_size
        blocks = VocabularyBlocks(self.vocabulary - coded, (self.codebook_size,) * self.codebooks)
        decoder = decoder_config(fields, blocks)
        return decoder.training_flops_per_token(self.sequence) * self.tokens


SMALL = {
    "d256": Shape(4, 256, 768, 4, 2, 64, 8192, 512, 4, 256),
    "d512": Shape(4, 512, 1536, 8, 8, 64, 4358, 512, 8, 256),
}
SUITE = {"135m": ("soda_135m", 16), "600m": ("soda_600m", 8), "1.7b": ("soda_1_7b", 8)}


def shape_of(name: str, batch: int | None) -> Shape:
    """Returns a shape by name; UserError if it is unknown."""
    if name in SMALL:
        shape = SMALL[name]
        return dataclasses.replace(shape, batch=batch or shape.batch)
    if name not in SUITE:
        raise UserError(f"--shapes: {name!r} is unknown: one of {', '.join([*SMALL, *SUITE])}")
    module, usual = SUITE[name]
    config = importlib.import_module(f"soda_jax.configs.{module}").get_config()
    model = {
        f.name: config.model[f.name] for f in dataclasses.fields(Shape) if f.name in config.model
    }
    layout = VocabularyLayout.soda()
    return Shape(
        **model,
        vocabulary=layout.size,
        codebook_size=layout.codebook_sizes[0],
        batch=batch or usual,
        sequence=config.data.sequence_length,
    )


def commands(args: argparse.Namespace, shape: Shape, platform: str) -> dict[str, Command]:
    """Returns the selected sides; always includes ours, with which the others are compared."""
    order = {"platform": platform, "shape": dataclasses.asdict(shape)}
    compiled = {**order, "compile": True}
    torch, script = args.transformers_python, "_step_transformers.py"
    # Only one side at a time runs on an accelerator; by default jax leaves a quarter of its memory unused.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    sides = {
        "ours": ("ours", Command(sys.executable, "_step_ours.py", order, memory)),
        "transformers": ("transformers", Command(torch, script, order)),
        "compiled": ("transformers, torch.compile", Command(torch, script, compiled)),
        "levanter": ("levanter", Command(args.levanter_python, "_step_levanter.py", order, memory)),
        "maxtext": ("maxtext", Command(args.maxtext_python, "_step_maxtext.py", order, memory)),
    }
    wanted = {"ours", *args.sides.split(",")} if args.sides else set(sides)
    if unknown := wanted - set(sides):
        raise UserError(f"--sides: {min(unknown)!r} is unknown: one of {', '.join(sides)}")
    return dict(sides[key] for key in sides if key in wanted)


def refuse_other_sizes(turns: dict[str, Turns]) -> None:
    """Excludes the sides whose number of parameters differs from ours."""
    ours = turns["ours"].ready
    for side in turns.values():
        if ours is None or side.ready is None:
            continue
        found, wanted = side.ready["parameters"], ours["parameters"]
        if abs(found - wanted) > PARAMETER_TOLERANCE * wanted:
            side.missing = f"{found:,} parameters, ours has {wanted:,}"
            side.answers = []


def table(name: str, shape: Shape, turns: dict[str, Turns]) -> str:
    """Returns the table of one shape as Markdown, and notes on missing sides."""
    refuse_other_sizes(turns)
    ours = turns["ours"]
    size = f"{ours.ready['parameters']:,} parameters" if ours.ready else "parameters unknown"
    lines = [
        f"### {name}: d {shape.hidden_size} × {shape.num_layers} layers, {size}, vocabulary "
        f"{shape.vocabulary:,}, batch {shape.batch} × {shape.sequence:,}",
        "",
        "| side | tokens/s, median | slowest to fastest round | ours / side | core-seconds a step | MFU "
        "| outside products | peak memory | setting |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [row(side, found, shape, ours) for side, found in turns.items() if found.answers]
    lines.append("")
    for side, found in turns.items():
        if found.missing:
            after = f" after {len(found.answers)} rounds" if found.answers else ""
            lines.append(f"{side}: not measured{after}: {found.missing}  ")
        elif found.ready:
            lines.append(f"{side}: {found.ready['version']} on {found.ready['device']}  ")
    return "\n".join([*lines, *footnotes(shape, ours)])


def add_rows(results: Results, name: str, shape: Shape, turns: dict[str, Turns]) -> None:
    """Adds the tokens per second of each side that ran, and the median of their ratios to ours."""
    rates = {
        side: [shape.tokens * a["steps"] / a["seconds"] for a in side_turns.answers]
        for side, side_turns in turns.items()
    }
    for side, values in rates.items():
        if pairs := list(zip(values, rates["ours"], strict=False)):
            ratio = statistics.median(value / ours for value, ours in pairs)
            results.add(name, side, "tokens_per_second", values, ratio)


def row(side: str, turns: Turns, shape: Shape, ours: Turns) -> str:
    """Returns a side's row; each turn is compared with our turn of the same round."""
    rates = [shape.tokens * a["steps"] / a["seconds"] for a in turns.answers]
    our_rates = [shape.tokens * a["steps"] / a["seconds"] for a in ours.answers]
    factors = [a / b for a, b in zip(our_rates, rates, strict=False)]
    flops = shape.flops() / shape.tokens
    mfu = [r * flops / a["peak_flops"] for r, a in zip(rates, ours.answers, strict=False)]
    away = [1 - r * flops / a["product_flops"] for r, a in zip(rates, ours.answers, strict=False)]
    cores = [a["core_seconds"] / a["steps"] for a in turns.answers]
    cells = [
        side,
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{statistics.median(factors):.2f}" if factors else "–",
        f"{statistics.median(cores):.2f}",
        f"{statistics.median(mfu):.0%}" if mfu else "–",
        f"{statistics.median(away):.0%}" if away else "–",
        f"{turns.answers[-1]['peak_bytes'] / 1e9:.2f} GB",
        ", ".join(f"{k} {v}" for k, v in (turns.ready or {}).get("setting", {}).items()),
    ]
    return "| " + " | ".join(cells) + " |"


def footnotes(shape: Shape, ours: Turns) -> list[str]:
    """Returns the peak rate of the MFU, and the definition of the column "outside products"."""
    if not ours.answers:
        return []
    peaks = [a["peak_flops"] for a in ours.answers]
    rates = [a["product_flops"] for a in ours.answers]
    seconds = [a["seconds"] / a["steps"] for a in ours.answers]
    return [
        f"peak: {ours.answers[0]['peak_source']}, {statistics.median(peaks) / 1e9:,.0f} GFLOP/s  ",
        "outside products: 1 − model FLOPs of a step / rate of one product / time of a step: "
        "everything except matrix products, and what products lose compared with a single product "
        f"({ours.answers[0]['product_source']}, measured at every turn of ours, "
        f"{statistics.median(rates) / 1e9:,.0f} GFLOP/s); step_profile.py separates the two for ours  ",
        f"our step: {statistics.median(seconds) * 1e3:,.0f} ms for {shape.flops() / 1e9:,.1f} GFLOP",
    ]


def main() -> None:
    """Measures and prints a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", help=f"of {', '.join([*SMALL, *SUITE])}; the default depends on the device"
    )
    parser.add_argument("--sides", help="of ours, transformers, compiled, levanter, maxtext (all)")
    parser.add_argument("--rounds", type=int, help="turns of each side (CPU 7, else 2)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of a turn in seconds (%(default)s)"
    )
    parser.add_argument("--batch", type=int, help="windows per step, for all shapes")
    usual = str(PARITY) if PARITY.exists() else sys.executable
    for peer in ("transformers", "levanter", "maxtext"):
        text = f"interpreter that has {peer} ({usual if peer == 'transformers' else 'this one'})"
        default = usual if peer == "transformers" else sys.executable
        parser.add_argument(f"--{peer}_python", default=default, metavar="PATH", help=text)
    args = parse(parser, {"shapes": "d256", "sides": "ours", "rounds": 1})
    try:
        platform = platform_here()
        on_cpu = platform == "cpu"
        names = (args.shapes or ",".join(SMALL if on_cpu else SUITE)).split(",")
        shapes = {name: shape_of(name, args.batch) for name in names}
        sides = {name: commands(args, shape, platform) for name, shape in shapes.items()}
        rounds = args.rounds or (7 if on_cpu else 2)
        print(f"{describe_machine()}; {platform}; {rounds} rounds of {args.seconds:g} s per side\n")
        with written(args.json) as results:
            for name, shape in shapes.items():
                turns = take_turns(sides[name], rounds, args.seconds, on_cpu, name)
                print(table(name, shape, turns))
                print(flush=True)
                add_rows(results, name, shape, turns)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
