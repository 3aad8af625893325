"""A checkpoint of parameters alone, written a slice at a time."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from soda_jax.checkpoints.slices import NewArray, SliceWriter, new_step
from soda_jax.convert.safetensors_folder import checksum
from soda_jax.convert.weights import ROWS, Weights, row_blocks, shapes, stored_rows, tables
from soda_jax.model import DecoderConfig
from soda_jax.progress import Progress

Checksums = dict[str, str]


def write_checkpoint(
    weights: Weights,
    directory: str | os.PathLike[str],
    step: int,
    metadata: Mapping[str, Any],
    bar: Progress,
) -> Checksums:
    """Writes `weights` as checkpoint `step` of a folder.

    Args:
      weights: read once, in the order of the forward pass.
      directory: of the checkpoints.
      step: number of the checkpoint.
      metadata: stands beside the arrays.
      bar: advanced by megabytes.

    Returns:
      crc32c of every layer's parameters and of every block of rows that were written, by their
      names as `read_checksums` makes them again.
    """
    config = weights.config
    sums: Checksums = {}
    with new_step(directory, step, _arrays(config), metadata) as writer:
        for table in tables(config):
            _write_table(weights, table, writer, sums, bar)
        for number in range(config.num_layers):
            for name, values in weights.layer(number).items():
                writer.write(f"layers/{name}", number, values)
                sums[f"layers/{number}/{name}"] = checksum(values)
                bar.advance(values.nbytes / 1e6)
        values = weights.final_norm()
        writer.write("final_norm", slice(None), values)
        sums["final_norm"] = checksum(values)
    return sums


def read_checksums(weights: Weights, bar: Progress) -> Checksums:
    """What `write_checkpoint` returned, of weights that are read again."""
    config = weights.config
    sums: Checksums = {}
    for table in tables(config):
        for first, last in row_blocks(config.vocabulary.size):
            rows = weights.rows(table, first, last)
            sums[f"{table}/{first}"] = checksum(rows)
            bar.advance(rows.nbytes / 1e6)
    for number in range(config.num_layers):
        for name, values in weights.layer(number).items():
            sums[f"layers/{number}/{name}"] = checksum(values)
            bar.advance(values.nbytes / 1e6)
    sums["final_norm"] = checksum(weights.final_norm())
    return sums


def _write_table(
    weights: Weights, table: str, writer: SliceWriter, sums: Checksums, bar: Progress
) -> None:
    """Writes a table; the rows that belong to no id become zero."""
    vocabulary, width = weights.config.vocabulary, weights.config.hidden_size
    groups = np.zeros((len(vocabulary.groups), vocabulary.group_rows, width), np.float32)
    for first, last in row_blocks(vocabulary.size):
        rows = weights.rows(table, first, last)
        sums[f"{table}/{first}"] = checksum(rows)
        taken = 0
        for block, index in stored_rows(weights.config, first, last):
            part = index[-1]
            assert isinstance(part, slice)
            values = rows[taken : taken + part.stop - part.start]
            taken += len(values)
            if block == "groups":
                groups[index] = values
            else:
                writer.write(f"{table}_first", part, values)
        bar.advance(rows.nbytes / 1e6)
    padding = vocabulary.padded_first - vocabulary.first_rows
    if padding:
        end = slice(vocabulary.first_rows, vocabulary.padded_first)
        writer.write(f"{table}_first", end, np.zeros((padding, width), np.float32))
    if groups.size:
        writer.write(f"{table}_groups", slice(None), groups)


def _arrays(config: DecoderConfig) -> dict[str, NewArray]:
    """Every parameter in chunks that are written, and read again, at once."""
    found = {}
    for name, shape in shapes(config).items():
        if name.startswith("layers/"):
            chunk = (1, *shape[1:])
        elif name.endswith("_first"):
            chunk = (min(ROWS, shape[0]), shape[1])
        else:
            chunk = tuple(max(1, size) for size in shape)
        found[name] = NewArray(shape, chunk)
    return found
