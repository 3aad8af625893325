"""Defines the settings of a Mimi model, with the names in the published `config.json`."""

import dataclasses
import math
from typing import Any, Self

from soda_jax.errors import UserError

# Settings for which only one value is supported.
_ONLY = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "attention_bias": False,
    "num_semantic_quantizers": 1,
}


@dataclasses.dataclass(frozen=True)
class MimiConfig:
    """Settings of a Mimi model; the defaults are those of kyutai/mimi."""

    sampling_rate: int = 24_000  # Hz
    hidden_size: int = 512  # width of the transformers and of the latent frames
    num_filters: int = 64  # channels of the first convolution, doubled by each downsampling
    num_residual_layers: int = 1  # residual blocks per time scale
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)  # per decoder stage; reversed in the encoder
    kernel_size: int = 7  # first convolution of the encoder and the decoder
    last_kernel_size: int = 3  # last convolution of the encoder and the decoder
    residual_kernel_size: int = 3  # first convolution in a residual block
    dilation_growth_rate: int = 2  # residual block j has dilation `dilation_growth_rate ** j`
    compress: int = 2  # divisor of the channels inside a residual block
    num_hidden_layers: int = 8  # layers per transformer
    intermediate_size: int = 2048  # width of the MLPs
    num_attention_heads: int = 8
    head_dim: int = 64
    sliding_window: int = 250  # positions that a position attends to, including itself
    rope_theta: float = 10_000.0  # base of the rotary position embeddings
    norm_eps: float = 1e-5  # epsilon of the layer norms
    codebook_size: int = 2048  # entries of each codebook
    codebook_dim: int = 256  # size of an entry
    num_quantizers: int = 32  # number of codebooks; the first is semantic
    latent_stride: int = 2  # transformer positions per frame of codes

    @property
    def samples_per_frame(self) -> int:
        """Audio samples per frame of codes; 1,920 in kyutai/mimi."""
        return math.prod(self.upsampling_ratios) * self.latent_stride

    @property
    def frame_rate(self) -> float:
        """Frames per second; 12.5 in kyutai/mimi."""
        return self.sampling_rate / self.samples_per_frame

    def to_json(self) -> dict[str, Any]:
        """Returns the settings with their published names."""
        value = dataclasses.asdict(self)
        theta = value.pop("rope_theta")
        del value["latent_stride"]
        value["upsampling_ratios"] = list(self.upsampling_ratios)
        return {
            "model_type": "mimi",
            **value,
            **_ONLY,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "frame_rate": self.frame_rate,
            **self._derived(),
        }

    def _derived(self) -> dict[str, int]:
        """Returns the published settings whose values follow from other settings."""
        return {
            "num_key_value_heads": self.num_attention_heads,
            "upsample_groups": self.hidden_size,
            "vector_quantization_hidden_dimension": self.codebook_dim,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], name: str) -> Self:
        """Returns the settings in `config.json`, with defaults for missing ones.

        Args:
          value: the JSON object.
          name: name of the file in error messages.

        Raises:
          UserError: if the file describes another type of model, or a setting is not supported.
        """
        if value.get("model_type", "mimi") != "mimi":
            raise UserError(f"{name} describes a {value['model_type']!r} model: give a Mimi model")
        known = {field.name for field in dataclasses.fields(cls)} - {"latent_stride"}
        given = {key: value[key] for key in known & value.keys() if value[key] is not None}
        rope = value.get("rope_parameters") or {}
        # Older files have `rope_theta` at the top level.
        if (theta := rope.get("rope_theta", value.get("rope_theta"))) is not None:
            given["rope_theta"] = float(theta)
        if "upsampling_ratios" in given:
            given["upsampling_ratios"] = tuple(given["upsampling_ratios"])
        config = cls(**given)
        if "head_dim" not in given:
            heads = config.num_attention_heads
            config = dataclasses.replace(config, head_dim=config.hidden_size // heads)
        rate = value.get("frame_rate") or value.get("_frame_rate")
        if rate:
            hop = math.prod(config.upsampling_ratios)
            stride = round(config.sampling_rate / hop / rate)
            config = dataclasses.replace(config, latent_stride=stride)
        for key, wanted in {**_ONLY, **config._derived()}.items():
            if value.get(key) not in (None, wanted):
                raise UserError(f"{name}: {key} is {value[key]}, only {wanted} is supported")
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"{name}: rope_type {rope['rope_type']!r} is not supported")
        if config.latent_stride < 2:
            raise UserError(f"{name}: frame_rate {rate} is not supported: it is too high")
        return config
