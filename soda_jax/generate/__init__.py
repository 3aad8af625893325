"""Generation that is legal by construction: speak, transcribe, continue."""

from typing import Any

__all__ = ["load"]


def load(workdir: str, **options: Any) -> Any:
    """Opens the newest valid checkpoint of a run; see `soda_jax.generate.speech_model.load`."""
    from soda_jax.generate.speech_model import load as load_model

    return load_model(workdir, **options)
