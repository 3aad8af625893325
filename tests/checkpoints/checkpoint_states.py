"""A tiny training state, and the damage done to its checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soda_jax.parallel import rules

AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}


def state(mesh, seed: int = 0) -> dict:
    """{params, opt_state (optax NamedTuples), step, bf16 and int leaves}, laid on `mesh`."""
    key = jax.random.key(seed)
    params = {
        "layer": {"w": jax.random.normal(key, (8, 16)), "b": jnp.arange(16.0)},
        "half": jax.random.normal(key, (4,)).astype(jnp.bfloat16),
    }
    whole = {
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
        "step": jnp.int32(seed),
    }

    def put(path, leaf):
        name = getattr(path[-1], "key", None)
        return jax.device_put(leaf, rules.sharding(mesh, AXES.get(name, (None,) * leaf.ndim)))

    return jax.tree_util.tree_map_with_path(put, whole)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(left, right) -> None:
    """Same structure, same bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def largest_file(step_directory: Path, below: str = "") -> Path:
    """The file with the array data."""
    files = [path for path in (step_directory / below).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
