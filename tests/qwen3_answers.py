"""The same answers by our decoder as `tests/parity/qwen3_torch.answers` gives by torch's."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from convert_toys import CODEBOOKS

from soda_jax.convert.tokenizer_files import tokenizer_files
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.model import ModelFunctions
from soda_jax.tokens.text import ByteTokenizer, make_layout


def answers(trained: TrainedDecoder, tokens: np.ndarray, new: int) -> dict[str, np.ndarray]:
    """See there; in f32 with exact products."""
    config = dataclasses.replace(trained.model.config, compute_dtype="float32", remat="none")
    decoder = ModelFunctions(config).bind(trained.params)

    def logits(ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return decoder.logits(decoder(ids, jnp.ones_like(ids), positions))

    with jax.default_matmul_precision("highest"):
        found = logits(jnp.asarray(tokens))
        nll = -jnp.take_along_axis(
            jax.nn.log_softmax(found[:, :-1]), jnp.asarray(tokens)[:, 1:, None], -1
        )
        said = jnp.asarray(tokens[:, :4])
        for _ in range(new):
            said = jnp.concatenate([said, logits(said)[:, -1:].argmax(-1)], 1)
    return {
        "logits": np.asarray(found),
        "loss": np.asarray(nll.mean()),
        "greedy": np.asarray(said[:, 4:], np.int32),
    }


def agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Logits within 1e-4, the same loss, the same greedy continuation."""
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(ours["greedy"], theirs["greedy"])


def with_tokenizer(source: Path, folder: Path) -> Path:
    """A copy of a model with the tokenizer files that it needs."""
    shutil.copytree(source, folder)
    tokenizer = ByteTokenizer()
    for name, content in tokenizer_files(tokenizer, make_layout(tokenizer, CODEBOOKS)).items():
        (folder / name).write_text(content)
    return folder
