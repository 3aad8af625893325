"""Worker of `generate.py`: llama.cpp (the wheel xllamacpp), Qwen3 with random weights.

It samples from its 200 most likely ids, because top-p over 144,644 candidates would halve its speed. Its
prompts and numbers of tokens are those of the other sides.
"""

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _worker import MissingError, Step, resident_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the only setting."""
    return [{}]


def write_model(path: Path, order: dict[str, Any]) -> int:
    """Writes a GGUF file of random weights; returns the number of parameters."""
    import gguf
    import numpy as np

    from soda_jax.convert.qwen3 import tensor_shapes
    from soda_jax.convert.to_gguf import Vocabulary, write_gguf
    from soda_jax.model import DecoderConfig, RopeConfig, VocabularyBlocks

    size, rng = order["vocabulary"], np.random.default_rng(0)
    config = DecoderConfig(
        vocabulary=VocabularyBlocks(size, ()), compute_dtype="float32", tie_embeddings=False,
        rope=RopeConfig(theta=10_000.0, factor=1.0), **order["model"],
    )  # fmt: skip
    pieces = [f"piece{number}" for number in range(size)]
    kinds = [int(gguf.TokenType.USER_DEFINED)] * size
    tensors = (
        (name, (rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5).astype(np.float32))
        for name, shape in tensor_shapes(config, size).items()
    )
    about = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 4096}
    write_gguf(path, config, about, Vocabulary(pieces, kinds, [], "gpt-2"), tensors,
               order["dtype"], path)  # fmt: skip
    return config.parameters


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Starts a server in this process; a step generates the tokens of one utterance per row."""
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed") from None
    if order["platform"] != "cpu":
        raise MissingError("the wheel of xllamacpp is for CPUs")
    rows, new = order["batch"], order["frames"] * order["codebooks"] + 1
    length = 24 + order["prompt_frames"] * order["codebooks"]
    params = xllamacpp.CommonParams()
    params.n_ctx, params.n_parallel = rows * (length + new + 64), rows
    params.cpuparams.n_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        parameters = write_model(path, order)
        params.model.path = str(path)
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
        server = xllamacpp.Server(params)
    greedy = order["sampling"] != "top-p"
    sampling: dict[str, Any] = {"temperature": 0}
    if not greedy:
        sampling = {"temperature": 1.0, "top_k": 200, "top_p": 0.8, "min_p": 0.0,
                    "samplers": ["top_k", "top_p", "temperature"]}  # fmt: skip

    def complete(row: int) -> int:
        prompt = [2 + (row * length + at) % 128_000 for at in range(length)]
        body = {"prompt": prompt, "n_predict": new, "ignore_eos": True, "cache_prompt": False,
                "seed": row, **sampling}  # fmt: skip
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode()
        )
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return int(json.load(answer)["tokens_predicted"])

    tokens = [0]

    def run(steps: int) -> None:
        with ThreadPoolExecutor(rows) as pool:
            tokens[0] = sum(sum(pool.map(complete, range(rows))) for _ in range(steps))

    facts = {
        "parameters": parameters,
        "device": "cpu",
        "version": f"xllamacpp {xllamacpp.__version__}",
    }
    return Step(run, facts, resident_bytes, lambda: {"tokens": tokens[0]}, False)


if __name__ == "__main__":
    serve(build, settings)
