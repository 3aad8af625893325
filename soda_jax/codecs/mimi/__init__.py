"""Mimi (Kyutai, arXiv 2410.00037) in Flax: the codec of SODA, with no torch.

    codec = MimiCodec.load("path/to/mimi")   # config.json and model.safetensors, as published
    codes = codec.encode([clip])[0]          # uint16 [frames, 8]
    sound = codec.decode([codes])[0]

`config` reads the settings, `weights` the published safetensors, `layers`, `transformer`,
`quantizer` and `model` are the network, `codec` puts it behind the codec interface, `streaming`
codes sound as it comes in.
"""

from soda_jax.codecs.mimi.codec import MimiCodec
from soda_jax.codecs.mimi.config import MimiConfig

__all__ = ["MimiCodec", "MimiConfig"]
