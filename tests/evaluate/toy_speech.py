"""A random decoder with a byte tokenizer and a codec of loudness, as a `SpeechModel`."""

import jax
import numpy as np

from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.registry import EVALUATORS
from soda_jax.tokens.text import ByteTokenizer, make_layout

MODEL = {
    "num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 8, "compute_dtype": "float32", "remat": "none",
    "rope": {"theta": 10_000.0, "factor": 1.0},
}  # fmt: skip


class LoudnessCodec:
    """Ten frames per second and two codebooks; both codes are the loudness of the frame."""

    name, sample_rate, samples_per_frame, frame_rate = "toy", 1_000, 100, 10.0
    codebook_sizes = (6, 6)
    fingerprint = "toy"

    def encode(self, audio):
        result = []
        for clip in audio:
            frames = np.pad(clip, (0, -len(clip) % 100)).reshape(-1, 100)
            level = np.round(np.abs(frames).mean(axis=1) * 100) % 6
            result.append(np.stack([level, level], axis=1).astype(np.uint16))
        return result

    def decode(self, codes):
        return [np.repeat(c[:, 0] / 100, 100).astype(np.float32) for c in codes]


LAYOUT = make_layout(ByteTokenizer(), LoudnessCodec.codebook_sizes)


def make_functions(**changes):
    return ModelFunctions(decoder_config(MODEL | changes, VocabularyBlocks.of(LAYOUT)))


def make_model(functions, context=512):
    # Larger weights than at the start of training, so that the log-probabilities differ.
    drawn = jax.jit(functions.init, static_argnums=0)(3)
    params = jax.tree.map(lambda array: 5 * array if array.ndim > 1 else array, drawn)
    metadata = {"data": {"sequence_length": context}, "config": {"model": MODEL}}
    return SpeechModel(
        7, metadata, LAYOUT, functions, params, tokenizer=ByteTokenizer(), codec=LoudnessCodec(),
        codebooks=2,
    )  # fmt: skip


def open_context(model, task, folder, likelihood=None, **options):
    """Returns the context of an evaluation of one benchmark with an opened model."""
    chosen = EvaluationOptions(tasks=(task,), benchmarks={task: str(folder)}, **options)
    context = EvaluationContext("run", chosen)
    vars(context).update(speech_model=model, model=model)
    if likelihood:
        vars(context)["likelihood"] = likelihood
    return context


def scores_of(context):
    return EVALUATORS.get(context.options.tasks[0], "tasks")(context)
