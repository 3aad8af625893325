"""The Qwen3 decoder. Its config contains the vocabulary blocks; no code here depends on audio."""

from soda_jax.model.config import (
    DecoderConfig,
    VocabularyBlocks,
    decoder_config,
    decoder_from_metadata,
)
from soda_jax.model.decoder import Decoder
from soda_jax.model.functions import ModelFunctions
from soda_jax.schema import RopeConfig

__all__ = [
    "Decoder",
    "DecoderConfig",
    "ModelFunctions",
    "RopeConfig",
    "VocabularyBlocks",
    "decoder_config",
    "decoder_from_metadata",
]
