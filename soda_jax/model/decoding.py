"""Runs a decoder token by token, with prepared weights and a cache of keys and values.

Training keeps the layers stacked, in f32, and scans over them. Decoding reads every weight once per
token, so its speed is that of the memory: the weights are cast once, each layer has its own arrays (a
scan would copy them), and the cache is updated in place.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError
from soda_jax.model import rope
from soda_jax.model.attention import attend
from soda_jax.model.config import DecoderConfig
from soda_jax.model.decoder import apply_layer, rms_norm
from soda_jax.model.output_major import output_major
from soda_jax.model.placement import ONE_DEVICE, Placement, one_cpu
from soda_jax.model.quantized import Quantized, dequantize, quantize

DTYPES = ("float32", "bfloat16", "int8")
# On a CPU, XLA computes batched products in a slow loop, but products of two matrices with a fast
# kernel. Up to this number of pairs (row, kv head), attention is a product for each pair.
_MOST_PAIRS = 64

Weights = dict[str, Any]


class Cache(NamedTuple):
    """Keys and values of one layer, `[batch, kv_heads, length, head_dim]`."""

    key: jax.Array
    value: jax.Array


def activation_dtype(dtype: str, platform: str) -> Any:
    """Returns the dtype of activations and cache for weights of a dtype on a platform.

    It is f32 on a CPU, because attention to a bf16 cache is slow there.
    """
    if platform == "cpu":
        return jnp.dtype(jnp.float32)
    return jnp.dtype(jnp.bfloat16 if dtype == "int8" else dtype)


def default_dtype(platform: str) -> str:
    """Returns the dtype of the weights by default: float32 on a CPU, else bfloat16."""
    return "float32" if platform == "cpu" else "bfloat16"


def check_dtype(dtype: str) -> None:
    """Raises UserError for a dtype that is not in `DTYPES`."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")


def decoding_weights(
    config: DecoderConfig, params: Any, dtype: str, placement: Placement = ONE_DEVICE
) -> Weights:
    """Returns the weights for `prefill` and `decode`, cast or quantized.

    The arrays that do not change, which are the f32 blocks of embedding and head and the final norm, are those
    of `params` and need no memory. Layers are copied, because each has separate arrays here.

    Args:
      config: decoder config.
      params: parameters of `ModelFunctions`, f32.
      dtype: one of `DTYPES`; int8 weights have one scale per output channel, and norms remain f32.
      placement: the devices; on one CPU, the weights of layers are stored as `OutputMajor`.

    Returns:
      a dict with `layers` (one dict per layer), `final_norm`, `embedding` and `head`, each a tuple of
      blocks `[rows, d]` and `[groups, rows, d]`; tied weights are stored once, as `head`.

    Raises:
      UserError: for an unknown dtype.
    """
    check_dtype(dtype)
    transposed = one_cpu(placement)

    def blocks(name: str) -> tuple[Any, ...]:
        found = [params[f"{name}_first"]]
        if config.vocabulary.groups:
            found.append(params[f"{name}_groups"])
        return tuple(_converted(block, (block.ndim - 1,), dtype) for block in found)

    names = {"head": "embedding" if config.tie_embeddings else "head"}
    if not config.tie_embeddings:
        names["embedding"] = "embedding"
    return {
        "layers": [
            _layer(params["layers"], number, dtype=dtype, transposed=transposed)
            for number in range(config.num_layers)
        ],
        "final_norm": params["final_norm"],
        **{name: blocks(source) for name, source in names.items()},
    }


@functools.partial(jax.jit, static_argnames=("contracted", "dtype"))
def _narrowed(array: jax.Array, contracted: tuple[int, ...], dtype: str) -> Any:
    return quantize(array, contracted) if dtype == "int8" else array.astype(dtype)


def _converted(array: jax.Array, contracted: tuple[int, ...], dtype: str) -> Any:
    # A jitted function copies an array that it returns unchanged.
    return array if array.dtype == dtype else _narrowed(array, contracted, dtype)


@functools.partial(jax.jit, static_argnames=("dtype", "transposed"))
def _layer(
    layers: Mapping[str, jax.Array], number: jax.Array, *, dtype: str, transposed: bool
) -> dict[str, Any]:
    """Returns the converted weights of a layer of stacked parameters, as `OutputMajor` if `transposed`."""

    def matrix(name: str, array: jax.Array) -> Any:
        if name.endswith("norm"):
            return array
        inputs = _inputs(name)
        weight = _converted(array, tuple(range(inputs)), dtype)
        return output_major(weight, inputs) if transposed else weight

    return {
        name: matrix(name, jax.lax.dynamic_index_in_dim(array, number, keepdims=False))
        for name, array in layers.items()
    }


def _inputs(name: str) -> int:
    """Returns the number of axes that the product with a weight of a layer contracts."""
    return 2 if name == "output" else 1


def rounded_params(params: Any, dtype: str) -> Any:
    """Returns f32 parameters with the values that `decoding_weights` have in `dtype`.

    Args:
      params: parameters of `ModelFunctions`, f32.
      dtype: one of `DTYPES`.

    Raises:
      UserError: for an unknown dtype.
    """
    check_dtype(dtype)

    def rounded(array: jax.Array, contracted: tuple[int, ...]) -> jax.Array:
        if dtype == "int8":
            return dequantize(quantize(array, contracted), contracted)
        return array.astype(dtype).astype(array.dtype)

    def stacked(name: str, array: jax.Array) -> jax.Array:
        # The first axis is that of the layers.
        return rounded(array, tuple(range(1, 1 + _inputs(name))))

    def named(name: str, value: Any) -> Any:
        if name == "layers":
            return {key: named(key, array) for key, array in value.items()}
        if name.endswith("norm"):
            return value
        table = name.startswith(("embedding", "head"))
        return rounded(value, (value.ndim - 1,)) if table else stacked(name, value)

    return {name: named(name, value) for name, value in params.items()}


def embed(config: DecoderConfig, weights: Weights, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Returns the embeddings of ids, `[…, d]` in `dtype`."""
    vocabulary = config.vocabulary
    row = jnp.asarray(vocabulary.row_of_id)[tokens]
    first, *groups = weights["head" if config.tie_embeddings else "embedding"]
    found = take_rows(first, jnp.minimum(row, vocabulary.padded_first - 1), dtype)
    if groups:
        number, index = jnp.divmod(
            jnp.maximum(row - vocabulary.padded_first, 0), vocabulary.group_rows
        )
        grouped = take_rows(groups[0], (number, index), dtype)
        found = jnp.where((row >= vocabulary.padded_first)[..., None], grouped, found)
    return found


def take_rows(block: Any, index: Any, dtype: Any) -> jax.Array:
    """Returns rows of a block of the embedding or head, in `dtype`."""
    if isinstance(block, Quantized):
        return (block.values[index].astype(dtype) * block.scale[index][..., None]).astype(dtype)
    return block[index].astype(dtype)


def empty_cache(
    config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32
) -> list[Cache]:
    """Returns a cache of zeros for `batch` rows of at most `length` tokens."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    return [
        Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
    ]


def prefill(
    config: DecoderConfig,
    weights: Weights,
    tokens: jax.Array,
    dtype: Any,
    placement: Placement = ONE_DEVICE,
) -> tuple[jax.Array, list[Cache]]:
    """Returns the hidden states of the beginnings of documents, and their keys and values.

    Args:
      config: decoder config.
      weights: see `decoding_weights`.
      tokens: int32 `[batch, length]`; padding at the end of a row does not affect earlier tokens.
      dtype: dtype of activations and cache.
      placement: sharding of activations.

    Returns:
      hidden `[batch, length, d]`, and a cache of this length.
    """
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length))
    caches: list[Cache] = []

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        caches.append(Cache(key.swapaxes(1, 2), value.swapaxes(1, 2)))
        return attend(query, key, value, mask, placement)

    hidden = _layers(config, weights, tokens, positions, length, [attention] * config.num_layers,
                     dtype, placement)  # fmt: skip
    return hidden, caches


def decode(
    config: DecoderConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    caches: Sequence[Cache],
    dtype: Any,
    placement: Placement = ONE_DEVICE,
) -> tuple[jax.Array, list[Cache]]:
    """Returns the hidden states of one new token per row, and the new cache.

    Args:
      config: decoder config.
      weights: see `decoding_weights`.
      tokens, positions: int32 `[batch]`, the new tokens and their positions. A token attends to the cache
        entries 0 … position, the last of which is its own.
      caches: keys and values of each layer.
      dtype: dtype of activations.
      placement: sharding of activations.

    Returns:
      hidden `[batch, d]` and the new cache.
    """
    length = caches[0].key.shape[2]
    mask = jnp.arange(length) <= positions[:, None]
    new: list[Cache] = []

    def attention_of(cache: Cache) -> Any:
        def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            updated = Cache(
                *(_write(c, n, positions) for c, n in zip(cache, (key, value), strict=True))
            )
            new.append(updated)
            return _attend_one(query[:, 0], updated, mask, placement)[:, None]

        return attention

    hidden = _layers(config, weights, tokens[:, None], positions[:, None], length,
                     [attention_of(cache) for cache in caches], dtype, placement)  # fmt: skip
    return hidden[:, 0], new


def _layers(config, weights, tokens, positions, length, attentions, dtype, placement):
    x = placement.constrain(embed(config, weights, tokens, dtype), ("batch", None, None))
    angles = rope.angles(positions, length, config.head_dim, config.rope)
    for layer, attention in zip(weights["layers"], attentions, strict=True):
        x = apply_layer(
            layer, x, config=config, angles=angles, attention=attention, placement=placement
        )
    return rms_norm(x, weights["final_norm"], config.rms_norm_eps)


def _write(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Writes `new` `[batch, 1, kv_heads, head_dim]` into the cache at each row's position."""

    def write_row(row: jax.Array, entry: jax.Array, position: jax.Array) -> jax.Array:
        entry = entry.swapaxes(0, 1).astype(row.dtype)
        return jax.lax.dynamic_update_slice(row, entry, (0, position, 0))

    return jax.vmap(write_row)(cache, new, positions)


def _attend_one(query: jax.Array, cache: Cache, mask: jax.Array, placement: Placement) -> jax.Array:
    """Returns the attention of one query per row, `[batch, heads, head_dim]`."""
    batch, heads, size = query.shape
    kv_heads = cache.key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, size) * size**-0.5

    def weights_of(scores: jax.Array, allowed: jax.Array) -> jax.Array:
        scores = jnp.where(allowed, scores.astype(jnp.float32), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1).astype(query.dtype)

    split = placement.ways("kv_heads", kv_heads) == placement.ways("batch", batch) == 1
    split &= placement.platform == "cpu" and batch * kv_heads <= _MOST_PAIRS
    if split:
        pairs = [(row, head) for row in range(batch) for head in range(kv_heads)]
        scores = jnp.stack([grouped[pair] @ cache.key[pair].T for pair in pairs])
        weights = weights_of(scores.reshape(*grouped.shape[:3], -1), mask[:, None, None])
        mixed = jnp.stack([weights[pair] @ cache.value[pair] for pair in pairs])
        return mixed.reshape(query.shape)
    scores = jnp.einsum("bkgd,bkld->bkgl", grouped, cache.key)
    mixed = jnp.einsum("bkgl,bkld->bkgd", weights_of(scores, mask[:, None, None]), cache.value)
    return mixed.reshape(query.shape)
