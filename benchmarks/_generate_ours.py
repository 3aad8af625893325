"""Worker of `generate.py`: our decoding engine with random weights, of this build or of another one."""

from collections.abc import Iterable
from typing import Any

from _worker import Step, jax_peak_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the only setting."""
    return [{}]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds an engine; a step speaks one utterance per row."""
    import jax
    import numpy as np

    from soda_jax.configs import base
    from soda_jax.generate.engine import Engine
    from soda_jax.generate.sampling import Sampling
    from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
    from soda_jax.tokens.vocabulary import VocabularyLayout

    layout = VocabularyLayout.soda()
    config = base.default().model
    config.update(order["model"])
    config.compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = ModelFunctions(decoder_config(config, VocabularyBlocks.of(layout)))
    params = jax.jit(model.init, static_argnums=0)(0)
    options = {"dtype": order["dtype"]} if order.get("dtype") else {}
    engine = Engine(model, params, layout, layout.codebooks, **options)
    rng = np.random.default_rng(0)
    text = (layout.bos, layout.text_start, *rng.integers(0, 128_000, 20), layout.text_end)
    spoken = layout.codes_to_ids(rng.integers(0, 2048, (order["prompt_frames"], layout.codebooks)))
    prompt = np.array([*text, layout.audio_start, *spoken], np.int32)
    prompts = [prompt] * order["batch"]
    sampling = Sampling(1.0, 0, 0.8) if order["sampling"] == "top-p" else Sampling(0.0, 0, 1.0)
    frames, tokens = order["frames"], [0]

    def run(steps: int) -> None:
        tokens[0] = 0
        for number in range(steps):
            results = engine(
                prompts, stop=layout.audio_end, budget=frames * layout.codebooks + 1,
                sampling=sampling, max_frames=frames, seed=number,
            )  # fmt: skip
            tokens[0] += sum(len(result.ids) for result in results)

    device = jax.devices()[0]
    facts = {
        "parameters": model.config.parameters,
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
    }
    return Step(run, facts, lambda: jax_peak_bytes(device), lambda: {"tokens": tokens[0]}, False)


if __name__ == "__main__":
    serve(build, settings)
