"""Shards the vocabulary loss over a mesh, which may split the tokens and the rows of the head.

`loss.py` contains the computation on one device. It calls a `Reduction` wherever a result depends
on tokens, or on rows of the head, that are on other devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from soda_jax.model.placement import Placement

AxisNames = tuple[str, ...]


class Reduction(NamedTuple):
    """Mesh axes over which partial results are combined; none on one device.

    Attributes:
      tokens: axes that split the tokens.
      width: the axes in `tokens` that also split the hidden size of the head's gradient.
      rows: for each block of the head, the axes that split its rows.
      sequence: the axes in `tokens` that split the positions of a row.
    """

    tokens: AxisNames
    width: AxisNames
    rows: tuple[AxisNames, ...]
    sequence: AxisNames = ()

    def max(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Returns the maximum over the blocks and over the devices that hold their rows."""
        over = [
            jax.lax.pmax(part, axes) if axes else part
            for part, axes in zip(parts, self.rows, strict=True)
        ]
        return functools.reduce(jnp.maximum, over)

    def sum(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Returns the sum over the blocks and over the devices that hold their rows."""
        split = [part for part, axes in zip(parts, self.rows, strict=True) if axes]
        whole = [part for part, axes in zip(parts, self.rows, strict=True) if not axes]
        axes = next((axes for axes in self.rows if axes), ())
        if split:
            whole.append(jax.lax.psum(functools.reduce(jnp.add, split), axes))
        return functools.reduce(jnp.add, whole)

    def max_over_rows(self, block: int, part: jax.Array) -> jax.Array:
        """Returns the maximum over the devices that hold rows of one block."""
        return jax.lax.pmax(part, self.rows[block]) if self.rows[block] else part

    def sum_over_rows(self, block: int, part: jax.Array) -> jax.Array:
        """Returns the sum over the devices that hold rows of one block."""
        return jax.lax.psum(part, self.rows[block]) if self.rows[block] else part

    def first_row(self, block: int, local_rows: int) -> Any:
        """Returns the index, within each group of a block, of the first row on this device."""
        axes = self.rows[block]
        return jax.lax.axis_index(axes) * local_rows if axes else 0

    def first_position(self, local_positions: int) -> Any:
        """Returns the index in its row of the first position on this device."""
        return jax.lax.axis_index(self.sequence) * local_positions if self.sequence else 0

    def head_gradient(self, gradient: jax.Array) -> jax.Array:
        """Sums a local gradient `[groups, rows, d]` over all tokens and splits d over `width`."""
        for axis in self.width:
            gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=2, tiled=True)
        axes = tuple(axis for axis in self.tokens if axis not in self.width)
        return jax.lax.psum(gradient, axes) if axes else gradient


def run_sharded(
    local_loss: Callable[..., Any],
    placement: Placement,
    hidden: jax.Array,
    head: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    with_gradients: bool,
) -> Any:
    """Runs `local_loss(reduction, hidden, head, *arrays)` on every device's shards.

    Each device uses its tokens and all columns of its rows of the head, and accumulates the
    gradient of these rows. The gradients of the devices are summed once, after the last chunk.

    Args:
      local_loss: returns (outputs, d_hidden, d_blocks) of local arrays; `outputs` are `[batch, sequence]`.
      placement: sharding of the arrays.
      hidden: `[batch, sequence, d]`.
      head: blocks `[groups, rows, d]`.
      arrays: further inputs, `[batch, sequence]` or `[batch]`.
      with_gradients: whether to compute d_hidden and d_blocks; they are None otherwise.
    """
    sharding = placement.sharding(("batch", "sequence", None), hidden.shape)
    if sharding is None:
        local = Reduction((), (), ((),) * len(head))
        return local_loss(local, hidden, head, *arrays)
    tokens = PartitionSpec(*sharding.spec[:2])
    token_axes = _axis_names(tokens)
    rows = [_spec(placement, (None, "vocabulary", None), block.shape) for block in head]
    # The gradient is sharded like its parameter if the mesh axes of `embed` also split the tokens.
    width = _axis_names(_spec(placement, (None, "embed"), head[0].shape[1:]))
    width = width if set(width) <= set(token_axes) else ()
    sequence = _axis_names(PartitionSpec(*tokens[1:]))
    reduction = Reduction(token_axes, width, tuple(map(_axis_names, rows)), sequence)
    gradients = [PartitionSpec(None, spec[1], width or None) for spec in rows]
    inputs = (sharding.spec, tuple(rows), *(PartitionSpec(*tokens[: a.ndim]) for a in arrays))
    outputs: Any = (tokens, sharding.spec, tuple(gradients))
    if not with_gradients:
        outputs = (tokens, None, None)
    function = functools.partial(local_loss, reduction)
    return placement.on_shards(function, inputs, outputs)(hidden, head, *arrays)


def _spec(
    placement: Placement, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> PartitionSpec:
    sharding = placement.sharding(axes, shape)
    assert sharding is not None
    return sharding.spec


def _axis_names(spec: PartitionSpec) -> AxisNames:
    return tuple(
        name for part in spec if part for name in ((part,) if isinstance(part, str) else part)
    )
