"""Saves checkpoints in the background with a digest file, and verifies them before use."""

from soda_jax.checkpoints.manager import Checkpointer
from soda_jax.checkpoints.restore import FORMAT_VERSION, CheckpointReader, RestoreReport

__all__ = ["FORMAT_VERSION", "CheckpointReader", "Checkpointer", "RestoreReport"]
