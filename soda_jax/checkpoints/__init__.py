"""Checkpoints: saved in the background, sealed with a digest, verified before use."""

from soda_jax.checkpoints.manager import Checkpointer
from soda_jax.checkpoints.restore import FORMAT_VERSION, CheckpointReader, RestoreReport

__all__ = ["FORMAT_VERSION", "CheckpointReader", "Checkpointer", "RestoreReport"]
