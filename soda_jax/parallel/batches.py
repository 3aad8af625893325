"""Finds the batch rows that a process reads, and assembles them into global arrays."""

import jax
import numpy as np

from soda_jax.parallel import rules


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
    """Returns the sorted indices of the global batch rows on the devices of this process."""
    sharding = rules.batch_sharding(mesh, (batch_size,))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    covered: set[int] = set()
    for index in indices:
        assert index is not None  # never None for an addressable device
        rows = index[0]
        covered.update(range(*rows.indices(batch_size)))
    return sorted(covered)


def rows_of_devices(
    mesh: jax.sharding.Mesh, batch_size: int, accumulation: int = 1
) -> list[list[int]]:
    """Returns the rows that are processed together: of each shard of the batch in each micro-batch.

    Micro-batch i consists of the rows i, i + accumulation, … (see `train.step`).
    """
    ways = rules.ways(mesh.shape, "batch")
    shards = np.arange(batch_size).reshape(ways, -1)
    return [
        shard[micro::accumulation].tolist() for shard in shards for micro in range(accumulation)
    ]


def place_batch(
    batch: dict[str, np.ndarray], rows: list[int], mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Returns global arrays [batch_size, …] from the `rows` of a batch that this process has read."""
    positions = {row: position for position, row in enumerate(rows)}

    def to_global(array: np.ndarray) -> jax.Array:
        shape = (batch_size, *array.shape[1:])

        def shard(index):
            local = [positions[row] for row in range(*index[0].indices(batch_size))]
            return array[(local, *index[1:])]

        return jax.make_array_from_callback(shape, rules.batch_sharding(mesh, shape), shard)

    return {name: to_global(array) for name, array in batch.items()}
