"""Qwen3 decoder in Flax NNX, with a scan over stacked layers.

The architecture has pre-norm RMSNorm, SwiGLU, QK-norm (RMSNorm of each query and key head),
grouped-query attention, rotary position embeddings and no biases. Every parameter has logical axes,
from which its sharding is derived.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from soda_jax.model import remat, rope
from soda_jax.model.attention import Attention, packed_attention
from soda_jax.model.config import DecoderConfig
from soda_jax.model.output_major import OutputMajor
from soda_jax.model.output_major import multiply as multiply_rows
from soda_jax.model.placement import ONE_DEVICE, Placement
from soda_jax.model.products import matmul
from soda_jax.model.quantized import Quantized


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple, deviation: float) -> nnx.Param:
    """Returns a parameter drawn from a normal distribution truncated at ±3σ.

    This follows SODA's training code; the config exported with its models differs.
    """
    return nnx.Param(_normal(rngs, shape, deviation), logical_axes=axes)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> jax.Array:
    return jax.random.truncated_normal(rngs.params(), -3.0, 3.0, shape, jnp.float32) * deviation


def _scale(size: int, axis: str | None) -> nnx.Param:
    return nnx.Param(jnp.ones((size,), jnp.float32), logical_axes=(axis,))


def project(
    x: jax.Array,
    weight: jax.Array | Quantized | OutputMajor,
    inputs: int = 1,
    flatten: bool = True,
    placement: Placement = ONE_DEVICE,
) -> jax.Array:
    """Multiplies `x` `[batch, sequence, inputs…]` by `weight` `[inputs…, outputs…]`.

    Args:
      x: activations.
      weight: its first `inputs` dimensions are contracted with the last `inputs` of `x`. int8 values are
        multiplied by their scale after the product. An `OutputMajor` matrix contracts all `inputs`.
      inputs: number of contracted dimensions.
      flatten: merge batch and sequence before the product. This avoids a copy on a CPU with one
        core, where XLA transposes three-dimensional operands, but not matrices, for the gradient
        of the weight. Must be False if the sequence is split over devices, because a split
        sequence cannot be merged with the batch.
      placement: sharding of the arrays.

    Returns:
      `[batch, sequence, outputs…]`.
    """
    if isinstance(weight, OutputMajor):
        product = multiply_rows(x.reshape(x.shape[0] * x.shape[1], -1), weight.rows)
        return product.reshape(*x.shape[:2], *weight.outputs).astype(x.dtype)
    if isinstance(weight, Quantized):
        product = project(x, weight.values.astype(x.dtype), inputs, flatten, placement)
        return (product * weight.scale).astype(x.dtype)
    if not flatten:
        return jnp.tensordot(x, weight, inputs)
    rows, outputs = x.shape[:2], weight.shape[inputs:]
    fan_in = math.prod(weight.shape[:inputs])
    product = matmul(x.reshape(-1, fan_in), weight.reshape(fan_in, -1), placement)
    return product.reshape(*rows, *outputs)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Returns x / √(mean x² + eps) · scale over the last axis in x.dtype, computed in f32."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (normed * scale).astype(x.dtype)


class Layer(nnx.Module):
    """The parameters of one decoder layer. In `Decoder` they have a leading `layers` axis."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c, d, hd = config, config.hidden_size, config.head_dim
        fan = d**-0.5
        self.attention_norm = _scale(d, "embed")
        self.query = _weight(rngs, (d, c.num_heads, hd), ("embed", "heads", None), fan)
        self.key = _weight(rngs, (d, c.num_kv_heads, hd), ("embed", "kv_heads", None), fan)
        self.value = _weight(rngs, (d, c.num_kv_heads, hd), ("embed", "kv_heads", None), fan)
        self.query_norm = _scale(hd, None)
        self.key_norm = _scale(hd, None)
        self.output = _weight(
            rngs, (c.num_heads, hd, d), ("heads", None, "embed"), (c.num_heads * hd) ** -0.5
        )
        self.mlp_norm = _scale(d, "embed")
        self.gate = _weight(rngs, (d, c.intermediate_size), ("embed", "mlp"), fan)
        self.up = _weight(rngs, (d, c.intermediate_size), ("embed", "mlp"), fan)
        self.down = _weight(
            rngs, (c.intermediate_size, d), ("mlp", "embed"), c.intermediate_size**-0.5
        )


def apply_layer(
    layer: Any,
    x: jax.Array,
    *,
    config: DecoderConfig,
    angles: tuple[jax.Array, jax.Array],
    attention: Attention,
    placement: Placement,
) -> jax.Array:
    """Applies one layer; returns the new `x`.

    Args:
      layer: parameters of the layer; the norms are f32, the others have the dtype of `x` or are prepared for
        decoding, see `decoding_weights`.
      x: `[batch, sequence, d]`.
      config: decoder config.
      angles: cosine and sine of the rotary angles, see `rope.angles`.
      attention: function of query, key and value, see `packed_attention`.
      placement: sharding of activations.
    """
    constrain = placement.constrain
    flatten = placement.ways("sequence", x.shape[1]) == 1  # see `project`
    multiply = functools.partial(project, flatten=flatten, placement=placement)
    normed = rms_norm(x, layer["attention_norm"], config.rms_norm_eps)
    # The constraints below gather keys and values over the sequence axis; queries remain sharded.
    query = multiply(normed, layer["query"])
    key = multiply(normed, layer["key"])
    value = multiply(normed, layer["value"])
    query = rms_norm(query, layer["query_norm"], config.rms_norm_eps)
    key = rms_norm(key, layer["key_norm"], config.rms_norm_eps)
    query, key = rope.rotate(query, *angles), rope.rotate(key, *angles)
    query = constrain(query, ("batch", "sequence", "heads", None))
    key = constrain(key, ("batch", None, "kv_heads", None))
    value = constrain(value, ("batch", None, "kv_heads", None))
    mixed = checkpoint_name(attention(query, key, value), remat.ATTENTION)
    x = x + multiply(mixed, layer["output"], 2)
    x = constrain(x, ("batch", "sequence", None))
    normed = rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    gate = multiply(normed, layer["gate"])
    inner = jax.nn.silu(gate) * multiply(normed, layer["up"])
    inner = constrain(inner, ("batch", "sequence", "mlp"))
    x = x + multiply(inner, layer["down"])
    return constrain(x, ("batch", "sequence", None))


def stored_matrices(config: DecoderConfig) -> tuple[dict[str, np.ndarray], ...]:
    """Returns the arrays of the embedding matrix and, if it is not tied, of the head matrix.

    Each dict is one matrix. It maps the name of each array to a mask of the rows that are not
    padding, bool `array.shape[:-1]`.
    """
    first, groups = config.vocabulary.valid_blocks
    matrices = ("embedding",) if config.tie_embeddings else ("embedding", "head")
    if not config.vocabulary.groups:
        return tuple({f"{name}_first": first} for name in matrices)
    return tuple({f"{name}_first": first, f"{name}_groups": groups} for name in matrices)


class Decoder(nnx.Module):
    """The decoder; its embedding and head consist of two blocks, see `VocabularyBlocks`."""

    embedding_first: nnx.Param
    embedding_groups: nnx.Param

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        vocabulary, d = config.vocabulary, config.hidden_size
        first, groups = vocabulary.valid_blocks
        rows = ("vocabulary", "embed")

        def block(valid: np.ndarray, axes: tuple, deviation: float) -> nnx.Param:
            # Padding rows are 0 and remain 0 because their gradient is 0, so they do not affect the
            # norms of parameters and gradients.
            weight = _normal(rngs, (*valid.shape, d), deviation)
            return nnx.Param(jnp.where(valid[..., None], weight, 0.0), logical_axes=axes)

        def blocks(name: str, deviation: float) -> None:
            setattr(self, f"{name}_first", block(first, rows, deviation))
            if vocabulary.groups:  # Orbax refuses arrays without elements
                setattr(self, f"{name}_groups", block(groups, (None, *rows), deviation))

        blocks("embedding", 1.0 / d)
        if not config.tie_embeddings:
            blocks("head", d**-0.5)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs)

        self.layers = stack(rngs)
        self.final_norm = _scale(d, "embed")

    def head_blocks(self) -> tuple[jax.Array, ...]:
        """Returns the head as `[1, padded_first, d]` and, with groups, `[groups, group_rows, d]`, f32."""
        name = "embedding" if self.config.tie_embeddings else "head"
        first = getattr(self, f"{name}_first")[...][None]
        if not self.config.vocabulary.groups:
            return (first,)
        return first, getattr(self, f"{name}_groups")[...]

    def embed(self, tokens: jax.Array, placement: Placement = ONE_DEVICE) -> jax.Array:
        """Embeds int32 ids `[batch, sequence]`; returns `[batch, sequence, d]` in `config.dtype`."""
        vocabulary = self.config.vocabulary
        row = jnp.asarray(vocabulary.row_of_id)[tokens]
        first = self.embedding_first[...][jnp.minimum(row, vocabulary.padded_first - 1)]
        if vocabulary.groups:
            table = self.embedding_groups[...].reshape(-1, self.config.hidden_size)
            grouped = table[jnp.maximum(row - vocabulary.padded_first, 0)]
            first = jnp.where((row >= vocabulary.padded_first)[..., None], grouped, first)
        first = first.astype(self.config.dtype(placement.platform, placement.devices))
        # With the first constraint, each device reads its columns for all batch rows of its fsdp
        # group. The second constraint exchanges them, so that each device has all columns of its
        # own batch rows. Without the first constraint, XLA replicates the batch on every device.
        first = placement.constrain(first, ("rows", "sequence", "embed"))
        return placement.constrain(first, ("batch", "sequence", None))

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        placement: Placement = ONE_DEVICE,
    ) -> jax.Array:
        """Returns the final hidden states of packed windows.

        Args:
          tokens, segment_ids, positions: int32 `[batch, sequence]`; positions must
            be below `sequence`.
          placement: sharding of activations; its platform selects the attention kernel.

        Returns:
          `[batch, sequence, d]` after the final norm, in `config.dtype`.
        """
        c = self.config
        attention = packed_attention(segment_ids, c.attention, placement)
        x = self.embed(tokens, placement)
        angles = rope.angles(positions, tokens.shape[1], c.head_dim, c.rope)
        stacked = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
        # The cast is before the scan, because inside the scan the backward pass would repeat it for
        # every layer.
        dtype = x.dtype
        stacked = {
            name: array if name.endswith("norm") else array.astype(dtype)
            for name, array in stacked.items()
        }

        def body(x, layer):
            x = apply_layer(
                layer, x, config=c, angles=angles, attention=attention, placement=placement
            )
            return x, None

        x, _ = jax.lax.scan(remat.checkpointed(body, c.remat), x, stacked, unroll=c.unroll)
        return rms_norm(x, self.final_norm[...], c.rms_norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the logits of all ids, f32 `[…, vocabulary]`, for tests and comparisons."""
        vocabulary = self.config.vocabulary
        first, *groups = (
            block.reshape(-1, self.config.hidden_size).astype(hidden.dtype)
            for block in self.head_blocks()
        )

        def project(block: jax.Array) -> jax.Array:
            return jnp.einsum("...d,vd->...v", hidden, block, preferred_element_type=jnp.float32)

        logits = project(first)[..., : vocabulary.first_rows]
        if not vocabulary.groups:
            return logits
        rows = vocabulary.row_of_id[vocabulary.first_rows :] - vocabulary.padded_first
        return jnp.concatenate([logits, project(groups[0])[..., rows]], axis=-1)
