"""Published weights in and out: `config.json` and `model.safetensors`, as at kyutai/mimi.

Names are those of the published file (`encoder.layers.3.conv.weight`, …), shapes PyTorch's.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import Conv, ResidualBlock, SeaNet, UpConv
from soda_jax.codecs.mimi.model import Mimi, abstract
from soda_jax.codecs.mimi.transformer import Layer, Transformer
from soda_jax.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_LEAST_USAGE = 1e-5  # entries that were never used in training are divided by this, not by 0


class Entry(NamedTuple):
    """One tensor of the file and the parameter it belongs to.

    Attributes:
      name: in the file.
      param: in the model.
      shape: in the file.
      inward: from the file's layout to ours.
      outward: back.
    """

    name: str
    param: nnx.Param
    shape: tuple[int, ...]
    inward: Callable[[np.ndarray], np.ndarray]
    outward: Callable[[np.ndarray], np.ndarray]


def entries(model: Mimi) -> Iterator[Entry]:
    """Every tensor of the file but the codebooks; see `codebook_names`."""
    for name, net in (("encoder", model.encoder), ("decoder", model.decoder)):
        yield from _seanet(f"{name}.layers", net)
    for name, transformer in (
        ("encoder_transformer", model.encoder_transformer),
        ("decoder_transformer", model.decoder_transformer),
    ):
        yield from _transformer(f"{name}.layers", transformer)
    yield from _conv("downsample.conv", model.downsample)
    yield from _conv("upsample.conv", model.upsample)
    for part, quantizer in (
        ("semantic", model.quantizer.semantic),
        ("acoustic", model.quantizer.acoustic),
    ):
        if quantizer is not None:
            name = f"quantizer.{part}_residual_vector_quantizer"
            yield _permuted(f"{name}.input_proj.weight", quantizer.inward, (1, 0), 1)
            yield _permuted(f"{name}.output_proj.weight", quantizer.outward, (1, 0), 1)


def codebook_names(codebooks: int) -> list[str]:
    """The name of each codebook in the file, to which `.embed_sum` and `.cluster_usage` are added."""
    name = "quantizer.{}_residual_vector_quantizer.layers.{}.codebook"
    acoustic = [name.format("acoustic", number) for number in range(codebooks - 1)]
    return [name.format("semantic", 0), *acoustic]


def _permuted(name: str, param: nnx.Param, order: tuple[int, ...], extra: int = 0) -> Entry:
    """A tensor whose axes are ours in another order, with `extra` axes of one element at its end.

    Args: order: axis of the file of each of our axes.
    """
    back = tuple(np.argsort(order).tolist())
    ones = (1,) * extra
    shape = tuple(param.shape[axis] for axis in back)
    return Entry(
        name,
        param,
        (*shape, *ones),
        lambda tensor: tensor.reshape(shape).transpose(order),
        lambda tensor: tensor.transpose(back).reshape(*shape, *ones),
    )


def _plain(name: str, param: nnx.Param) -> Entry:
    return _permuted(name, param, tuple(range(len(param.shape))))


def _conv(name: str, conv: Conv | UpConv) -> Iterator[Entry]:
    if isinstance(conv, Conv):
        yield _permuted(f"{name}.weight", conv.weight, (2, 1, 0))
    elif conv.depthwise:
        size, channels = conv.weight.shape
        yield Entry(
            f"{name}.weight",
            conv.weight,
            (channels, 1, size),
            lambda tensor: tensor[:, 0].T,
            lambda tensor: tensor.T[:, None],
        )
    else:
        yield _permuted(f"{name}.weight", conv.weight, (2, 0, 1))
    if conv.bias is not None:
        yield _plain(f"{name}.bias", conv.bias)


def _seanet(name: str, net: SeaNet) -> Iterator[Entry]:
    for number, layer in zip(net.numbers, net.layers, strict=True):
        if isinstance(layer, ResidualBlock):
            yield from _conv(f"{name}.{number}.block.1.conv", layer.first)
            yield from _conv(f"{name}.{number}.block.3.conv", layer.second)
        else:
            yield from _conv(f"{name}.{number}.conv", layer)


def _transformer(name: str, transformer: Transformer) -> Iterator[Entry]:
    for number, layer in enumerate(transformer.layers):
        yield from _layer(f"{name}.{number}", layer)


def _layer(name: str, layer: Layer) -> Iterator[Entry]:
    for theirs, norm in (
        ("input_layernorm", layer.attention_norm),
        ("post_attention_layernorm", layer.mlp_norm),
    ):
        yield _plain(f"{name}.{theirs}.weight", norm.weight)
        yield _plain(f"{name}.{theirs}.bias", norm.bias)
    for theirs, param in (
        ("self_attn.q_proj", layer.query),
        ("self_attn.k_proj", layer.key),
        ("self_attn.v_proj", layer.value),
        ("self_attn.o_proj", layer.output),
        ("mlp.fc1", layer.up),
        ("mlp.fc2", layer.down),
    ):
        yield _permuted(f"{name}.{theirs}.weight", param, (1, 0))
    yield _plain(f"{name}.self_attn_layer_scale.scale", layer.attention_scale)
    yield _plain(f"{name}.mlp_layer_scale.scale", layer.mlp_scale)


def read_config(path: Path) -> tuple[MimiConfig, dict[str, Any]]:
    """The settings of `config.json`, and the JSON object itself.

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
            f"{path} cannot be read ({cause}): name the folder of a Mimi model"
        ) from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} is no Mimi config ({error}): copy it again") from None


def read_weights(path: Path, config: MimiConfig, codebooks: int) -> Mimi:
    """The model of `model.safetensors`.

    Args:
      path: the file.
      config: its shape.
      codebooks: how many codebooks to read.

    Raises:
      UserError: if the file is missing or damaged, or a tensor is missing or of another shape.
    """
    import safetensors

    model = abstract(config, codebooks)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            ours = {_flat_name(name): name for name in file.keys()}  # noqa: SIM118, no mapping
            get = _Getter(path, file, ours)
            for entry in entries(model):
                tensor = get(entry.name, entry.shape)
                entry.param.set_value(np.ascontiguousarray(entry.inward(tensor), np.float32))
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


# transformers 5 holds the two halves as models of their own; the published file does not.
_NESTED = {
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.decoder_seanet.": "decoder.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "decoder.upsample.": "upsample.",
}


def _flat_name(name: str) -> str:
    """The published name of a tensor that may be named as in memory."""
    for nested, flat in _NESTED.items():
        if name.startswith(nested):
            return flat + name.removeprefix(nested)
    return name


class _Getter:
    """Reads tensors by their published names and checks their shapes."""

    def __init__(self, path: Path, file: Any, names: dict[str, str]):
        self._path, self._file, self._names = path, file, names

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._names:
            raise UserError(f"{self._path} has no tensor {name!r}: is it a Mimi model?")
        tensor = self._file.get_tensor(self._names[name])
        if tensor.shape != shape:
            raise UserError(
                f"{self._path}: {name} is {list(tensor.shape)}, the config says {list(shape)}"
            )
        return tensor.astype(np.float32)


def tensors(model: Mimi) -> dict[str, np.ndarray]:
    """The model under the names and in the layout of the published file, f32."""
    found = {
        entry.name: np.ascontiguousarray(entry.outward(np.asarray(entry.param[...])))
        for entry in entries(model)
    }
    quantizer = model.quantizer
    books = [np.asarray(quantizer.semantic.codebooks[...])[0]]
    if quantizer.acoustic is not None:
        books += list(np.asarray(quantizer.acoustic.codebooks[...]))
    for name, book in zip(codebook_names(len(books)), books, strict=True):
        found[f"{name}.embed_sum"] = book
        found[f"{name}.cluster_usage"] = np.ones(len(book), np.float32)
        found[f"{name}.initialized"] = np.ones(1, np.float32)
    return found
