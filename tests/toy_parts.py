"""A plugin outside the package: one toy of each kind that a user can register."""

import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

from soda_jax.evaluate.evaluators import evaluator
from soda_jax.model.attention import attend, packed_mask
from soda_jax.registry import ATTENTION_BACKENDS, LOSS_TERMS, METRICS, OPTIMIZERS, TEXT_TOKENIZERS


class LetterTokenizer:
    """Letters of an alphabet; other characters are dropped."""

    def __init__(self, alphabet):
        self.alphabet = alphabet
        size = len(alphabet)
        self.vocabulary_size, self.bos, self.eos = size + 2, size, size + 1
        self.specials = (self.bos, self.eos)
        self.fingerprint = hashlib.sha256(alphabet.encode()).hexdigest()[:16]

    def encode(self, text):
        found = (self.alphabet.find(letter) for letter in text.lower())
        return np.array([index for index in found if index >= 0], np.int32)

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids if i < len(self.alphabet))

    def save(self, directory):
        Path(directory).mkdir(parents=True, exist_ok=True)
        content = json.dumps({"soda": f"letters:{self.alphabet}"})
        (Path(directory) / "tokenizer.json").write_text(content)


@TEXT_TOKENIZERS.register("letters")
def letters(argument, folder):
    return LetterTokenizer(argument)


@OPTIMIZERS.register("toy_sgd")
def toy_sgd(config, schedule, params, matrices):
    def update(gradients, state, params=None, *, step, **extra):
        return optax.tree.scale(-schedule(step), gradients), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@ATTENTION_BACKENDS.register("toy_full")
def toy_full(segment_ids, placement):
    mask = packed_mask(segment_ids)
    return lambda query, key, value: attend(query, key, value, mask)


@LOSS_TERMS.register("toy_activation")
def toy_activation(decoder, hidden, batch):
    """Σ over the targets of the mean square of the last hidden state."""
    squares = jnp.square(hidden.astype(jnp.float32)).mean(-1)
    return 0.1 * jnp.sum(batch["loss_mask"] * squares)


@METRICS.register("toy_update_norm")
def toy_update_norm(step):
    return optax.global_norm(step.updates)


@evaluator("toy_size")
def toy_size(context):
    return {"parameters": context.model.model.config.parameters, "windows": context.windows.count}
