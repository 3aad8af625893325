"""Worker of `train_step.py` and `head.py`: the step of `soda train` on random tokens or documents.

Orders of `train_step.py` have one segment of random tokens per row. Orders with a `text_share` have rendered
documents, and may have `head`, `full_every`, `remat` and, on a CPU, `compute_dtype` of `model`.
"""

from collections.abc import Iterable
from typing import Any

from _worker import Step, jax_peak_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the remat policies to try, from most to least memory."""
    if order.get("remat"):
        return [{"remat": order["remat"]}]
    names = ("none", "attention", "full") if order["platform"] != "cpu" else ("none",)
    return [{"remat": name} for name in names]


def prepare(order: dict[str, Any], setting: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the `Program` of a run's config on the first device, and a batch on it."""
    import jax
    import numpy as np

    from soda_jax.data.windows import empty_batch
    from soda_jax.parallel import rules
    from soda_jax.train.program import make_program

    shape = order["shape"]
    layout = vocabulary(shape)
    program = make_program(config_of(order, setting), layout, 1, jax.devices()[:1])
    if "text_share" in order:
        from _documents import document_windows

        windows = document_windows(layout, shape["batch"], shape["sequence"], order["text_share"])
        if order.get("head", "full") == "full":
            windows = windows._replace(legal_set=None, full_offset=None)
    else:
        windows = empty_batch(shape["batch"], shape["sequence"])
        size = windows.tokens.shape
        windows.tokens[:] = np.random.default_rng(0).integers(0, layout.size, size)
        windows.target_class[:, :-1] = layout.class_of_id[windows.tokens[:, 1:]]
        windows.loss_mask[:, :-1] = 1
    batch = {
        name: jax.device_put(array, rules.batch_sharding(program.mesh, array.shape))
        for name, array in windows.arrays().items()
    }
    return program, batch


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds the step of a run's config."""
    import jax

    from soda_jax.train import hardware
    from soda_jax.train.program import use_compilation_cache

    use_compilation_cache()
    program, batch = prepare(order, setting)
    device = program.mesh.devices.flat[0]
    state = [program.init()]

    def run(steps: int) -> None:
        for _ in range(steps):
            state[0], metrics = program.step(state[0], batch)
        jax.block_until_ready((state[0], metrics))

    def peak() -> dict[str, Any]:
        # Measured at every turn, because the speed of the machine varies.
        if device.platform == "cpu":
            rate, name = hardware.measure_matmul(2048), "2048³ f32 product"
            return {
                "peak_flops": rate,
                "peak_source": name,
                "product_flops": rate,
                "product_source": name,
            }
        top, source = hardware.peak_flops([device])
        return {
            "peak_flops": top,
            "peak_source": source,
            "product_flops": hardware.measure_matmul(8192, dtype="bfloat16"),
            "product_source": "8192³ bf16 product",
        }

    facts = {
        "parameters": program.model.config.parameters,
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
    }
    return Step(run, facts, lambda: jax_peak_bytes(device), peak)


def vocabulary(shape: dict[str, Any]) -> Any:
    """Returns a vocabulary layout of `shape["vocabulary"]` ids: text, markers and codebooks."""
    from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

    codebooks = (shape["codebook_size"],) * shape["codebooks"]
    text = shape["vocabulary"] - sum(codebooks) - len(MARKERS)
    return VocabularyLayout(text, (0, 1), 0, 1, codebooks)


def config_of(order: dict[str, Any], setting: dict[str, Any]) -> Any:
    """Returns the settings of a run of this shape on one device."""
    from soda_jax.configs import base
    from soda_jax.schema import MODEL_SIZES, run_config

    config, shape, on_cpu = base.default(), order["shape"], order["platform"] == "cpu"
    config.model.update({name: shape[name] for name in MODEL_SIZES})
    config.model.remat = setting["remat"]
    if on_cpu:  # the f32 of the other sides, unless the order says otherwise
        dtype = order.get("compute_dtype", "float32")
        config.model.update(compute_dtype=dtype, unroll=shape["num_layers"])
    if "head" in order:
        config.model.update(head=order["head"], full_every=order.get("full_every", 0))
    config.batch_size = shape["batch"]
    config.data.sequence_length = shape["sequence"]
    return run_config(config)


if __name__ == "__main__":
    from soda_jax import memory

    memory.restart_with_huge_pages()  # as `soda train` does
    serve(build, settings)
