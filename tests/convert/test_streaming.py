"""Memory of a conversion does not grow with the number of layers."""

import json
import subprocess
import sys

import pytest

MODEL = {
    "hidden_size": 512, "intermediate_size": 2048, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64,
    "rope": {"theta": 1e4, "factor": 1.0}, "remat": "none",
}  # fmt: skip

# Prints the growth of the peak memory while the command runs, in MB.
MEASURE = """
import re, sys
from soda_jax import cli
from soda_jax.convert import from_hf, to_hf, verify
import jax
jax.devices()
def memory(key):
    with open("/proc/self/status") as file:
        return int(re.search(key + r":\\s+(\\d+)", file.read())[1]) / 1e3
before = memory("VmRSS")
assert cli.main(sys.argv[1:]) == 0
print("grew", memory("VmHWM") - before)
"""


def make_run(workdir, layers):
    import numpy as np
    from convert_toys import CODEBOOKS, blocks

    from soda_jax.convert.weights import Weights, layer_shapes, write_checkpoint
    from soda_jax.model import decoder_config
    from soda_jax.progress import progress
    from soda_jax.tokens.text import ByteTokenizer, make_layout

    tokenizer = ByteTokenizer()
    layout = make_layout(tokenizer, CODEBOOKS)

    model = {**MODEL, "num_layers": layers}

    class Noise(Weights):
        config = decoder_config(model, blocks(layout))

        def read(self, name, first, last):
            if name == "final_norm":
                return np.ones(last - first, np.float32)
            if not name.startswith("layers/"):
                return np.ones((last - first, 512), np.float32) * 0.01
            shape = (last - first, *layer_shapes(self.config)[name.removeprefix("layers/")])
            noise = np.random.default_rng(first).standard_normal(shape, np.float32)
            return noise * (0.04 if len(shape) > 2 else 1)

    metadata = {
        "config": {"model": model},
        "data": {"sources": {}},
        "layout": layout.to_json(),
        "layout_fingerprint": layout.fingerprint,
        "codec_fingerprint": None,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    tokenizer.save(workdir / "tokenizer")
    with progress("noise", 0) as bar:
        write_checkpoint(Noise(), workdir / "checkpoints", 0, metadata, bar)
    return 4e-6 * Noise.config.parameters


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def grew(*words):
    command = [sys.executable, "-c", MEASURE, "convert", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("grew")[1])


def test_memory_hardly_grows_with_the_number_of_layers(tmp_path):
    found = {}
    for layers in (8, 24):
        run, out, back = (tmp_path / f"{name}{layers}" for name in ("run", "out", "back"))
        size = make_run(run, layers)
        # A file is held in memory, so its size is the same for both models.
        found[layers] = (
            size,
            grew("to-hf", run, out, "--shard_mb=32"),
            grew("from-hf", out, back),
        )
    more, more_out, more_back = (
        large - small for small, large in zip(*found.values(), strict=True)
    )
    assert more > 250  # MB
    print(found)
    assert max(more_out, more_back) < more / 3, found
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 8
