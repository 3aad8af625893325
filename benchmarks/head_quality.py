"""Quality of models trained with the head over legal ids and with the head over all ids.

    python benchmarks/head_quality.py --output=head_quality           # run it again to resume
    python benchmarks/head_quality.py --output=head_quality_demo --vocabulary=demo --steps=1000

Toy decoders with the vocabulary of SODA, 144,644 ids, learn the speech of `soda demo`, whose mel codec gets
codebooks of 2,048 codes and whose bytes get the ids 0 to 255 of a text vocabulary of 128,256. Every model is
trained on the same windows in the same order, with several seeds, for an equal number of tokens; "equal time"
runs are longer by the ratio of the step times, which is measured first in alternating turns. All models are
scored under both normalizers and by word error rates. With `--vocabulary=demo`, model
and vocabulary are those of `configs/demo.py`, which learn the task in less time; these models are also sampled without the
grammar, and as their step times are about equal, there are no "equal time" runs. All results are in OUTPUT/results.json.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _machine import describe_machine
from _results import parse, written
from _sides import Command, platform_here, take_turns
from train_step import Shape

from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.tokens.vocabulary import VocabularyLayout

LAYOUT = VocabularyLayout.soda()
SHAPE = Shape(
    num_layers=4, hidden_size=128, intermediate_size=384, num_heads=4, num_kv_heads=2, head_dim=32,
    vocabulary=LAYOUT.size, codebook_size=LAYOUT.codebook_sizes[0], batch=8, sequence=256,
)  # fmt: skip
EVERY = 17
# Name → (options of the run, whether it is trained for the time of "full").
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "full": ({}, False),
    "legal": ({"head": "legal"}, False),
    f"legal, every {EVERY}": ({"head": "legal", "full_every": EVERY}, False),
    f"legal, every {EVERY}, equal time": ({"head": "legal", "full_every": EVERY}, True),
}
CLASSES = ("all", "text", "semantic", "acoustic_1", "acoustic_4", "acoustic_7", "marker")


def soda(*arguments: Any) -> None:
    """Runs a `soda` command; raises UserError if it fails."""
    command = [sys.executable, "-m", "soda_jax.cli", *map(str, arguments)]
    if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"soda {arguments[0]} failed with exit code {code}; its message is above")


def write_tokenizer(folder: Path) -> None:
    """Writes a byte tokenizer with the text ids of SODA, of which only the first 256 are used."""
    from soda_jax.tokens.text import train_bpe

    bytes_only = json.loads(train_bpe([], 258).content)
    vocabulary = bytes_only["model"]["vocab"]
    specials = set(LAYOUT.specials)
    ordinary = [i for i in range(LAYOUT.text_size) if i not in specials]
    vocabulary = {
        piece: number for number, piece in enumerate(sorted(vocabulary, key=vocabulary.get))
    }
    vocabulary |= {f"unused {i}": i for i in ordinary[len(vocabulary) :]}
    names = {LAYOUT.bos: "<|begin_of_text|>", LAYOUT.eos: "<|end_of_text|>"}
    added = [
        {"id": i, "content": names.get(i, f"<|reserved_{i}|>"), "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for i in sorted(specials)
    ]  # fmt: skip
    bytes_only["model"]["vocab"], bytes_only["added_tokens"] = vocabulary, added
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", bytes_only)


def prepare(home: Path, clips: int, soda_layout: bool) -> None:
    """Makes corpus, codec, tokenizer and data sets, if they do not exist."""
    from tokenize_pipeline.synthetic import synthesize

    if not (home / "corpus" / "text.jsonl").exists():
        synthesize(home / "corpus", "demo", clips, clips // 2, 0)
    if not (home / "codec").exists():
        soda("codec", "fit", home / "corpus", f"--output={home}/codec",
             f"--codebook_size={SHAPE.codebook_size if soda_layout else 256}",
             "--max_minutes=20")  # fmt: skip
    tokenizer: tuple[str, ...] = ()
    if soda_layout:
        if not (home / "tokenizer").exists():
            write_tokenizer(home / "tokenizer")
        tokenizer = (f"--tokenizer={home}/tokenizer",)
    for name, file, kind in (
        ("speech", "manifest.jsonl", "manifest"),
        ("text", "text.jsonl", "text"),
    ):
        soda("tokenize", f"--input={home}/corpus/{file}", f"--format={kind}", f"--output={home}/{name}",
             f"--codec=mel:{home}/codec", *tokenizer, "--validation_fraction=0.04")  # fmt: skip


def step_ratio(home: Path, rounds: int) -> float:
    """Returns the step time of "full" divided by that of "legal, every N", measured once."""
    path = home / "step_ratio.json"
    if not path.exists():
        platform = platform_here()
        order = {
            "platform": platform, "shape": dataclasses.asdict(SHAPE), "text_share": 0.25,
            "compute_dtype": "auto",
        }  # fmt: skip
        every = {**order, "head": "legal", "full_every": EVERY}
        sides = {"full": order, "legal": every}
        commands = {n: Command(sys.executable, "_step_ours.py", o) for n, o in sides.items()}
        turns = take_turns(commands, rounds, 3.0, platform == "cpu", "step times")
        seconds = {n: [a["seconds"] / a["steps"] for a in t.answers] for n, t in turns.items()}
        pairs = [a / b for a, b in zip(seconds["full"], seconds["legal"], strict=True)]
        write_json(path, {"ratio": statistics.median(pairs), "seconds": seconds})
    return float(json.loads(path.read_text("utf-8"))["ratio"])


def run_of(home: Path, variant: str, seed: int, args: argparse.Namespace, ratio: float) -> Any:
    """Trains and scores one model, unless that is done; returns its scores."""
    options, equal_time = VARIANTS[variant]
    steps = round(args.steps * ratio) if equal_time else args.steps
    work = home / f"{variant.replace(', ', '_').replace(' ', '_')}_{seed}"
    scores: dict[str, Any] = {"steps": steps, "seed": seed, "variant": variant}
    outputs = {name: work / f"scores_{name}.json" for name in ("full", "legal", "grammar")}
    if args.vocabulary == "soda":  # sampling from 144,644 ids is slow on a CPU
        del outputs["grammar"]
    if not all(path.exists() for path in outputs.values()):
        print(f"== {variant}, seed {seed}: {steps} steps", file=sys.stderr, flush=True)
        names = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
        model = {}
        if args.vocabulary == "soda":
            model = {name: getattr(SHAPE, name) for name in names}
        soda("train", "--config=configs/demo.py", f"--workdir={work}", f"--config.steps={steps}",
             f"--config.seed={seed}", f"--config.data.seed={seed}",
             f"--config.evaluate.every_steps={steps}", f"--config.checkpoint.every_steps={steps}",
             *(f"--config.model.{name}={value}" for name, value in (model | options).items()),
             f"--config.data.sources.speech.path={home}/speech",
             f"--config.data.sources.semantic.path={home}/speech",
             f"--config.data.sources.text.path={home}/text")  # fmt: skip
        tasks = {
            "full": ("--tasks=loss", "--head=full"),
            "legal": ("--tasks=loss,asr,tts", "--head=legal", f"--limit={args.limit}"),
            "grammar": ("--tasks=grammar", f"--limit={args.limit}"),
        }
        for name, output in outputs.items():
            if not output.exists():
                soda("evaluate", f"--workdir={work}", "--max_seconds=3", *tasks[name],
                     f"--output={output}")  # fmt: skip
    found = {head: json.loads(path.read_text("utf-8")) for head, path in outputs.items()}
    for head in ("full", "legal"):
        vector = found[head]["loss"]["model"]
        scores[head] = {name: vector[f"loss/{name}"] for name in CLASSES}
    legal = found["legal"]
    scores["asr_wer"] = legal["asr"]["word_error_rate"]
    scores["tts_wer"] = legal["tts"]["word_error_rate"]
    if "grammar" in found:
        grammar = found["grammar"]["grammar"]
        scores["legal_share"] = {k: grammar[k]["legal_share"] for k in ("speech", "text")}
    return scores


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the means over seeds as Markdown, with the smallest and the largest value."""
    titles = [*CLASSES, "all ids", "ASR WER", "TTS WER", "legal speech", "legal text"]
    lines = [
        "| trained with | steps | seeds | " + " | ".join(titles) + " |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for variant in VARIANTS:
        rows = [row for row in results if row["variant"] == variant]
        if not rows:
            continue
        columns = [[row["legal"][name] for row in rows] for name in CLASSES]
        cells = [_spread(values, ".3f") for values in columns]
        cells.append(_spread([row["full"]["all"] for row in rows], ".3f"))
        for values in (
            [row["asr_wer"] for row in rows],
            [row["tts_wer"] for row in rows],
            *(
                [row["legal_share"][kind] for row in rows if "legal_share" in row]
                for kind in ("speech", "text")
            ),
        ):
            cells.append(_spread(values, ".0%"))
        lines.append(
            f"| {variant} | {rows[0]['steps']} | {len(rows)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], style: str) -> str:
    if not values:
        return "–"
    middle = format(statistics.mean(values), style)
    return f"{middle} ({format(min(values), style)} to {format(max(values), style)})"


def main() -> None:
    """Runs what is missing and prints the table after each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="head_quality", help="folder (default %(default)s)")
    parser.add_argument(
        "--vocabulary",
        default="soda",
        choices=("soda", "demo"),
        help="layout (default %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="steps of 2,048 tokens (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument(
        "--step_ratio", type=float, default=0.0, help="of an earlier measurement (default: measure)"
    )
    parser.add_argument("--clips", type=int, default=5000, help="utterances (%(default)s)")
    parser.add_argument(
        "--limit", type=int, default=48, help="utterances of ASR and TTS (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of the step times (%(default)s)"
    )
    args = parse(parser, {"steps": 2, "seeds": 1, "clips": 600, "limit": 2, "rounds": 1})
    home = Path(args.output).resolve()
    home.mkdir(parents=True, exist_ok=True)
    try:
        settings = {name: getattr(args, name) for name in ("vocabulary", "steps", "clips", "limit")}
        path = home / "settings.json"
        if path.exists() and (before := json.loads(path.read_text("utf-8"))) != settings:
            raise UserError(f"{home} has {before}, not {settings}: give another --output")
        write_json(path, settings)
        prepare(home, args.clips, args.vocabulary == "soda")
        variants, ratio = list(VARIANTS), 1.0
        if args.vocabulary == "soda":
            ratio = args.step_ratio or step_ratio(home, args.rounds)
            print(f"step of full / legal, every {EVERY}: {ratio:.2f}")
        else:
            variants = [name for name in variants if not VARIANTS[name][1]]
        print(describe_machine() + "\n")
        scores: list[dict[str, Any]] = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for variant in variants:
                scores.append(run_of(home, variant, seed, args, ratio))
                write_json(home / "results.json", scores)
            print(table(scores) + "\n", flush=True)
        with written(args.json) as results:
            for variant in variants:
                losses = [row["legal"]["all"] for row in scores if row["variant"] == variant]
                results.add("held-out loss over legal ids", variant, "nats", losses)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
