"""SODA in JAX: pretraining of native audio language models.

`soda_jax.load(workdir)` opens a trained model; everything else is in the sub-packages and the
`soda` command. Importing this package is fast, because JAX is imported only when a model is loaded.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soda_jax.generate.speech_model import SpeechModel

__version__ = "0.1.0"


def load(workdir: str, **options: Any) -> "SpeechModel":
    """Opens the newest valid checkpoint of a run; see `soda_jax.generate.speech_model.load`."""
    from soda_jax.generate.speech_model import load as load_model

    return load_model(workdir, **options)
