"""Worker of `evaluate.py`: our scorer and our decoder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _evaluate_items as items
from _worker import Step, jax_peak_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the only setting."""
    return [{}]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Loads the weights; a step scores all items, or transcribes 16 recordings."""
    import jax
    import numpy as np

    from soda_jax.convert.architecture import decoder_of
    from soda_jax.convert.qwen3 import HuggingFaceWeights
    from soda_jax.convert.safetensors_folder import TensorFolder
    from soda_jax.convert.weights import whole
    from soda_jax.evaluate.likelihood import ModelLikelihood, ScoredSequence
    from soda_jax.generate.checkpoint import TrainedDecoder
    from soda_jax.generate.engine import Engine
    from soda_jax.generate.sampling import GREEDY
    from soda_jax.model import ModelFunctions, VocabularyBlocks
    from soda_jax.model.placement import OneDevice
    from soda_jax.tokens.vocabulary import VocabularyLayout

    layout, file = VocabularyLayout.soda(), Path(order["folder"]) / "config.json"
    items.check(layout)
    config = decoder_of(json.loads(file.read_text()), VocabularyBlocks.of(layout), file)
    weights = HuggingFaceWeights(TensorFolder(file.parent), config, layout.size)
    model, params = ModelFunctions(config), jax.device_put(whole(weights))
    done: dict[str, Any] = {}
    if order["task"] == "score":
        decoder = TrainedDecoder(0, {}, layout, model, params, OneDevice(order["platform"]))
        likelihood = ModelLikelihood(decoder, layout.codebooks, (order["head"],))
        sequences = [
            ScoredSequence(ids.astype(np.int32), 2, len(ids) - 1)
            for ids in items.scored(order["items"])
        ]

        def run(steps: int) -> None:
            for _ in range(steps):
                sums = [s for _, found in likelihood(sequences) for s in found[order["head"]]]
                tokens = sum(float(s.tokens.sum()) for s in sums)
                done.update(done=tokens, mean=sum(float(s.nll.sum()) for s in sums) / tokens)

    else:
        engine = Engine(model, params, layout, layout.codebooks, dtype=order["dtype"])
        prompts = items.recordings()

        def run(steps: int) -> None:
            for _ in range(steps):
                found = engine(prompts, stop=layout.text_end, budget=items.NEW, sampling=GREEDY)
                done.update(done=len(found))

    device = jax.devices()[0]
    facts = {
        "parameters": config.parameters,
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
    }
    return Step(run, facts, lambda: jax_peak_bytes(device), lambda: dict(done))


if __name__ == "__main__":
    serve(build, settings)
