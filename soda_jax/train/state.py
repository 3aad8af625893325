"""The training state: the input and output of a step, and the content of a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from soda_jax.model import ModelFunctions
from soda_jax.parallel import rules

State = dict[str, Any]


def shardings(tree: Any, axes: dict[str, Any], mesh: jax.sharding.Mesh) -> Any:
    """Returns the sharding of every leaf of a training state.

    `axes` contains the logical axes of every parameter. A leaf inside a copy of the parameter tree
    (parameters, Adam's moments) is sharded like its parameter; all other leaves (counters) are
    replicated.
    """

    def choose(path, leaf):
        node: Any = axes
        for entry in path:
            name = getattr(entry, "key", getattr(entry, "name", None))
            if isinstance(node, dict) and name in node:
                node = node[name]
        if isinstance(node, tuple) and len(node) == len(leaf.shape):
            return rules.sharding(mesh, node, leaf.shape)
        return rules.replicated(mesh)

    return jax.tree_util.tree_map_with_path(choose, tree)


def make_state(
    model: ModelFunctions, optimizer: optax.GradientTransformationExtraArgs, seed: int
) -> State:
    """Returns a new state; jit it with `out_shardings`, so that no device holds full arrays."""
    return state_from_params(model.init(seed), optimizer)


def state_from_params(params: Any, optimizer: optax.GradientTransformationExtraArgs) -> State:
    """Returns the state at step 0 with the given parameters; jit it like `make_state`."""
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "accepted": jnp.zeros((), jnp.int32),
        "skipped_in_a_row": jnp.zeros((), jnp.int32),
        "gradient_norm_average": jnp.zeros((), jnp.float32),
    }


def abstract_state(
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: jax.sharding.Mesh,
) -> State:
    """Returns shapes, dtypes and shardings of the state, for restore and ahead-of-time compilation."""
    shapes = jax.eval_shape(lambda: make_state(model, optimizer, 0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, model.axes, mesh),
    )
