"""Speed and peak memory of `soda convert` in both directions.

    python benchmarks/convert.py [--config=soda_135m] [--directory=/tmp] [--rounds=3]
    python benchmarks/convert.py --config=soda_4b --rounds=1      # needs 35 GB of disk space

A run with random weights of the config's shape and a vocabulary of SODA's size is written first. Each
round converts it to Hugging Face and back in separate processes, including the verification, and copies
the same bytes with `shutil.copyfile` and fsync. Files are read from the page cache if it is large enough.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe_machine
from _results import parse, written

from soda_jax.commands._config import load_config
from soda_jax.convert.weights import TABLES, Weights, layer_shapes, write_checkpoint
from soda_jax.model import DecoderConfig, VocabularyBlocks, decoder_config
from soda_jax.progress import progress
from soda_jax.tokens.text import load_tokenizer, make_layout


class NoiseWeights(Weights):
    """Random parameters that are generated when they are read."""

    def __init__(self, config: DecoderConfig):
        self.config, self._shapes = config, layer_shapes(config)

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        shape: tuple[int, ...] = (last - first,)
        key = 0
        if name in TABLES:
            shape, key = (*shape, self.config.hidden_size), TABLES.index(name)
        elif name != "final_norm":
            inner = name.removeprefix("layers/")
            shape, key = (*shape, *self._shapes[inner]), 2 + list(self._shapes).index(inner)
        if len(shape) < (2 if name in TABLES else 3):  # the scale of a norm
            return np.ones(shape, np.float32)
        random = np.random.default_rng((key, first))
        return random.standard_normal(shape, np.float32) * shape[1] ** -0.5


def write_tokenizer(folder: Path) -> None:
    """Writes a byte-level BPE with as many pieces as Llama 3's; most of them are placeholders."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"piece {n}" for n in range(128_000 - len(alphabet)))]
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{n}|>" for n in range(254))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": 128_000 + n, "content": name, "special": True, **flags}
            for n, name in enumerate(names)
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": [],
        },
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def write_run(workdir: Path, name: str) -> int:
    """Writes a run with a checkpoint of noise; returns the number of bytes of its parameters."""
    write_tokenizer(workdir / "tokenizer")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    layout = make_layout(tokenizer, (2048,) * 8)
    fields = load_config(name, []).model.to_dict()
    config = decoder_config(fields, VocabularyBlocks.of(layout))
    metadata = {
        "config": {"model": fields},
        "data": {"sources": {}},
        "data_digest": None,
        "layout": layout.to_json(),
        "layout_fingerprint": layout.fingerprint,
        "codec_fingerprint": None,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    size = 4 * config.parameters
    with progress("writing a run of noise, MB", size / 1e6) as bar:
        write_checkpoint(NoiseWeights(config), workdir / "checkpoints", 0, metadata, bar)
    return size


def measured(*command: str) -> tuple[float, float]:
    """Returns seconds and peak resident memory in MB of a command, which must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit status {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1e3


def copy(source: Path, target: Path) -> float:
    """Returns the seconds of a plain copy of a folder's files with fsync."""
    began = time.perf_counter()
    target.mkdir()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as handle:
            os.fsync(handle.fileno())
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="soda_135m")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser, {"rounds": 1})
    soda = [sys.executable, "-m", "soda_jax.cli"]
    start = measured(*soda, "convert", "--help")[1]
    rows: dict[str, list[tuple[float, float]]] = {}
    with written(args.json) as results, tempfile.TemporaryDirectory(dir=args.directory) as name:
        folder = Path(name)
        size = write_run(folder / "run", args.config)
        run, out, back = folder / "run", folder / "out", folder / "back"
        for number in range(args.rounds):
            for label, *command in (
                ("to-hf --verify=tensors", "to-hf", run, out, "--verify=tensors"),
                ("to-hf", "to-hf", run, out),
                ("from-hf", "from-hf", out, back),
            ):
                if run in command:
                    shutil.rmtree(out, ignore_errors=True)
                elif number == args.rounds - 1:  # to save disk space
                    shutil.rmtree(run)
                seen = measured(*soda, "convert", *map(str, command))
                rows.setdefault(label, []).append(seen)
            shutil.rmtree(back)
            rows.setdefault("plain copy and fsync", []).append((copy(out, folder / "copy"), 0.0))
            shutil.rmtree(out)
        for label, values in rows.items():
            side = "ours" if "hf" in label else "reference"
            rates = [size / 1e6 / seconds for seconds, _ in values]
            results.add(label, side, "megabytes_per_second", rates)
            if side == "ours":
                results.add(f"{label}, memory", side, "megabytes", [peak for _, peak in values])
    print(describe_machine())
    print(
        f"{args.config}: {size / 1e6:,.0f} MB of parameters; `soda convert --help` uses {start:,.0f} MB"
    )
    print(f"{'':26} {'MB/s':>8} {'range':>17} {'peak memory, MB':>20}")
    for label, values in rows.items():
        rates = sorted(size / 1e6 / seconds for seconds, _ in values)
        memory: Any = max(peak for _, peak in values)
        print(
            f"{label:26} {statistics.median(rates):8,.0f} {rates[0]:8,.0f}–{rates[-1]:<8,.0f} "
            f"{f'{memory:,.0f}' if memory else '':>20}"
        )


if __name__ == "__main__":
    main()
