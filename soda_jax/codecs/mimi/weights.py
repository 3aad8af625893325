"""Reads and writes `config.json` and `model.safetensors` in the format of kyutai/mimi.

Tensor names are those of the published file (`encoder.layers.3.conv.weight`, …), and shapes are
those of the PyTorch model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import Conv, ResidualBlock, SeaNet, UpConv
from soda_jax.codecs.mimi.model import Mimi, abstract
from soda_jax.codecs.mimi.transformer import Layer
from soda_jax.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_LEAST_USAGE = 1e-5  # lower bound of the divisor; entries never used in training have usage 0
# Prefixes in files that transformers 5 writes -> prefixes in the published file.
_NESTED = {
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.decoder_seanet.": "decoder.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "decoder.upsample.": "upsample.",
}


class Entry(NamedTuple):
    """A tensor in the file and the parameter that it corresponds to.

    Attributes:
      name: name of the tensor in the file.
      param: parameter of the model.
      axes: permutation that transposes the parameter to the axis order of the file.
      shape: shape in the file, which may have an additional axis of size 1.
    """

    name: str
    param: nnx.Param
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """Converts a tensor to the layout of the parameter."""
        sizes = [self.param.shape[axis] for axis in self.axes]
        return tensor.reshape(sizes).transpose(np.argsort(self.axes))

    def to_file(self) -> np.ndarray:
        """Returns the parameter in the layout of the file."""
        return np.asarray(self.param[...]).transpose(self.axes).reshape(self.shape)


def entries(model: Mimi) -> Iterator[Entry]:
    """Yields all tensors in the file except the codebooks; see `codebook_names`."""
    for half in ("encoder", "decoder"):
        yield from _seanet(f"{half}.layers", getattr(model, half))
        for number, layer in enumerate(getattr(model, f"{half}_transformer").layers):
            yield from _layer(f"{half}_transformer.layers.{number}", layer)
    yield from _conv("downsample.conv", model.downsample)
    yield from _conv("upsample.conv", model.upsample)
    for part in ("semantic", "acoustic"):
        if (quantizer := getattr(model.quantizer, part)) is not None:
            name = f"quantizer.{part}_residual_vector_quantizer"
            yield _entry(f"{name}.input_proj.weight", quantizer.inward, (1, 0), one_at=2)
            yield _entry(f"{name}.output_proj.weight", quantizer.outward, (1, 0), one_at=2)


def codebook_names(codebooks: int) -> list[str]:
    """Returns the name of each codebook, to which `.embed_sum` or `.cluster_usage` is appended."""
    name = "quantizer.{}_residual_vector_quantizer.layers.{}.codebook"
    acoustic = [name.format("acoustic", number) for number in range(codebooks - 1)]
    return [name.format("semantic", 0), *acoustic]


def _entry(
    name: str, param: nnx.Param, axes: tuple[int, ...] = (), one_at: int | None = None
) -> Entry:
    """Returns the entry of a parameter.

    Args:
      name: see `Entry`.
      param: see `Entry`.
      axes: see `Entry`; the identity by default.
      one_at: position of the additional axis of size 1 in the file, if it has one.
    """
    axes = axes or tuple(range(len(param.shape)))
    shape = [param.shape[axis] for axis in axes]
    if one_at is not None:
        shape.insert(one_at, 1)
    return Entry(name, param, axes, tuple(shape))


def _conv(name: str, conv: Conv | UpConv) -> Iterator[Entry]:
    if isinstance(conv, Conv):
        yield _entry(f"{name}.weight", conv.weight, (2, 1, 0))
    elif conv.depthwise:
        yield _entry(f"{name}.weight", conv.weight, (1, 0), one_at=1)
    else:
        yield _entry(f"{name}.weight", conv.weight, (1, 2, 0))
    if conv.bias is not None:
        yield _entry(f"{name}.bias", conv.bias)


def _seanet(name: str, net: SeaNet) -> Iterator[Entry]:
    number = -2
    for layer in net.layers:
        # The published layer numbers also count the ELU before each convolution except the first.
        number += 1 if isinstance(layer, ResidualBlock) else 2
        if isinstance(layer, ResidualBlock):
            yield from _conv(f"{name}.{number}.block.1.conv", layer.first)
            yield from _conv(f"{name}.{number}.block.3.conv", layer.second)
        else:
            yield from _conv(f"{name}.{number}.conv", layer)


def _layer(name: str, layer: Layer) -> Iterator[Entry]:
    for theirs, norm in (
        ("input_layernorm", layer.attention_norm),
        ("post_attention_layernorm", layer.mlp_norm),
    ):
        yield _entry(f"{name}.{theirs}.weight", norm.weight)
        yield _entry(f"{name}.{theirs}.bias", norm.bias)
    for theirs, param in (
        ("self_attn.q_proj", layer.query),
        ("self_attn.k_proj", layer.key),
        ("self_attn.v_proj", layer.value),
        ("self_attn.o_proj", layer.output),
        ("mlp.fc1", layer.up),
        ("mlp.fc2", layer.down),
    ):
        yield _entry(f"{name}.{theirs}.weight", param, (1, 0))
    yield _entry(f"{name}.self_attn_layer_scale.scale", layer.attention_scale)
    yield _entry(f"{name}.mlp_layer_scale.scale", layer.mlp_scale)


def read_config(path: Path) -> tuple[MimiConfig, dict[str, Any]]:
    """Returns the settings in `config.json`, and the JSON object itself.

    Raises:
      UserError: if the file is missing, damaged or describes another model.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return MimiConfig.from_json(value, str(path)), value
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({cause}): give the folder of a Mimi model"
        ) from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} is not a Mimi config ({error}): copy it again") from None


def read_weights(path: Path, config: MimiConfig, codebooks: int) -> Mimi:
    """Returns the model with the weights in `model.safetensors`.

    Args:
      path: the file.
      config: settings of the model.
      codebooks: number of codebooks to read.

    Raises:
      UserError: if the file is missing or damaged, or a tensor is missing or has another shape.
    """
    import safetensors

    model = abstract(config, codebooks)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = {_flat_name(name): name for name in file.keys()}  # noqa: SIM118, not a mapping

            def get(name: str, shape: tuple[int, ...]) -> np.ndarray:
                if name not in names:
                    raise UserError(f"{path} has no tensor {name!r}: is it a Mimi model?")
                tensor = file.get_tensor(names[name])
                if tensor.shape != shape:
                    raise UserError(
                        f"{path}: {name} has shape {list(tensor.shape)}, "
                        f"{CONFIG} requires {list(shape)}"
                    )
                return tensor.astype(np.float32)

            for entry in entries(model):
                tensor = entry.from_file(get(entry.name, entry.shape))
                entry.param.set_value(np.ascontiguousarray(tensor))
            shape = (config.codebook_size, config.codebook_dim)
            books = []
            for name in codebook_names(codebooks):
                total = get(f"{name}.embed_sum", shape)
                usage = get(f"{name}.cluster_usage", shape[:1])
                books.append(total / np.maximum(usage, np.float32(_LEAST_USAGE))[:, None])
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy the model's folder again") from None
    model.quantizer.semantic.codebooks.set_value(books[0][None])
    if model.quantizer.acoustic is not None:
        model.quantizer.acoustic.codebooks.set_value(np.stack(books[1:]))
    return model


def _flat_name(name: str) -> str:
    """Returns the published name of a tensor, without the prefixes of transformers 5."""
    for nested, flat in _NESTED.items():
        if name.startswith(nested):
            return flat + name.removeprefix(nested)
    return name


def tensors(model: Mimi) -> dict[str, np.ndarray]:
    """Returns the parameters as f32, with the names and layout of the published file."""
    found = {entry.name: np.ascontiguousarray(entry.to_file()) for entry in entries(model)}
    quantizer = model.quantizer
    books = [np.asarray(quantizer.semantic.codebooks[...])[0]]
    if quantizer.acoustic is not None:
        books += list(np.asarray(quantizer.acoustic.codebooks[...]))
    for name, book in zip(codebook_names(len(books)), books, strict=True):
        found[f"{name}.embed_sum"] = book
        found[f"{name}.cluster_usage"] = np.ones(len(book), np.float32)
        found[f"{name}.initialized"] = np.ones(1, np.float32)
    return found
