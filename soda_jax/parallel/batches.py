"""Rows of a global batch: which a process reads, and how they reach its devices."""

import jax
import numpy as np

from soda_jax.parallel import rules


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
    """Rows of the global batch that this process's devices cover, ascending."""
    sharding = rules.batch_sharding(mesh, (batch_size,))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    covered: set[int] = set()
    for index in indices:
        assert index is not None  # every addressable device of the sharding has a part
        rows = index[0]
        covered.update(range(*rows.indices(batch_size)))
    return sorted(covered)


def place_batch(
    batch: dict[str, np.ndarray], rows: list[int], mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Puts this process's `rows` of a batch on its devices, as global arrays."""
    at = {row: place for place, row in enumerate(rows)}

    def place(array: np.ndarray) -> jax.Array:
        shape = (batch_size, *array.shape[1:])

        def piece(index):
            first = [at[row] for row in range(*index[0].indices(batch_size))]
            return array[(first, *index[1:])]

        return jax.make_array_from_callback(shape, rules.batch_sharding(mesh, shape), piece)

    return {name: place(array) for name, array in batch.items()}
