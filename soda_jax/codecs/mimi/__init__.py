"""Mimi (Kyutai, arXiv 2410.00037), SODA's codec, implemented in Flax without torch.

    codec = MimiCodec.load("path/to/mimi")   # config.json and model.safetensors, as published
    codes = codec.encode([clip])[0]          # uint16 [frames, 8]
    sound = codec.decode([codes])[0]

`layers`, `transformer` and `model` define the network, `config` and `weights` read the published
files, `runner` processes batches on devices, `codec` implements the codec interface, and
`streaming` encodes and decodes incrementally.
"""

from soda_jax.codecs.mimi.codec import MimiCodec
from soda_jax.codecs.mimi.config import MimiConfig

__all__ = ["MimiCodec", "MimiConfig"]
