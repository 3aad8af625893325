"""Reads the windows of a split, one source after another, with the views used in training."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.data.dataset import Dataset, make_dataset
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.loss_vector import loss_vector
from soda_jax.errors import UserError
from soda_jax.model import VocabularyBlocks, legal
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.partition import joint_sets

Sums = dict[str, np.ndarray]  # "nll" and "count" of the targets, f64 `[sources, classes]`


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """All whole windows of a split.

    A source that is shorter than a training window is read as one shorter window.

    Attributes:
      layout: the vocabulary.
      source_names: names of all sources in the config.
      datasets: the sources that have the split, by index in `source_names`.
      left_out: names of the sources that lack the split.
    """

    layout: VocabularyLayout
    source_names: tuple[str, ...]
    datasets: Mapping[int, Dataset]
    left_out: tuple[str, ...]

    @functools.cached_property
    def legal(self) -> legal.LegalSets | None:
        """The legal sets of the windows; None if they were opened without."""
        opened = list(self.datasets.values())
        if not opened[0].legal_sets:
            return None
        codebooks = [count for dataset in opened for count in dataset.codebooks]
        return legal.legal_sets(
            VocabularyBlocks.of(self.layout), *joint_sets(self.layout, codebooks)
        )

    @property
    def count(self) -> int:
        """Number of windows."""
        return sum(dataset.windows or 0 for dataset in self.datasets.values())

    def batches(
        self, size: int, rows: Sequence[int] | None = None, limit: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields dicts with the fields of `soda_jax.data.windows.Batch`, each from one source.

        Args:
          size: windows per batch; the last batch of a source is padded with masked rows.
          rows: the rows of each batch to read, all by default.
          limit: approximate number of batches, evenly spaced, at least one per source; 0 = all.
        """
        rows = range(size) if rows is None else rows
        for number, start in self._batch_starts(size, limit):
            batch = self.datasets[number].batch(start, rows)
            source = np.full(len(rows), number, np.int32)
            yield batch._replace(source=source).arrays()

    def batch_count(self, size: int, limit: int = 0) -> int:
        """Returns the number of batches that `batches` yields."""
        return len(self._batch_starts(size, limit))

    def window_count(self, size: int, limit: int = 0) -> int:
        """Returns the number of windows in the batches that `batches` yields."""
        starts = self._batch_starts(size, limit)
        return sum(min(size, (self.datasets[n].windows or 0) - start) for n, start in starts)

    def loss_vector(self, sums: Sums) -> dict[str, float]:
        """Returns the loss vector computed from sums over these windows."""
        names = self.layout.class_names
        return loss_vector(sums["nll"], sums["count"], names, self.source_names)

    def _batch_starts(self, size: int, limit: int) -> list[tuple[int, int]]:
        starts = [
            (number, start)
            for number, dataset in self.datasets.items()
            for start in range(0, dataset.windows or 0, size)
        ]
        if not limit or limit >= len(starts):
            return starts
        spread = {starts[index * len(starts) // limit] for index in range(limit)}
        return sorted(spread | {(number, 0) for number in self.datasets})


def with_split(
    config: DataConfig | Mapping[str, Any], split: str
) -> tuple[DataConfig, tuple[str, ...]]:
    """Returns the `data` settings of the sources that have the split, and the names of the others.

    For splits other than "train", `mask_records` is cleared, because a line without a split is
    meant for the training split.

    Raises:
      UserError: if a manifest cannot be read, or no source has the split.
    """
    config = parse(DataConfig, config, "data")
    kept, left_out = {}, []
    for name, source in config.sources.items():
        if Manifest.load(source.path, source.generation).totals(split)["records"]:
            masked = source.mask_records if split == "train" else ""
            kept[name] = dataclasses.replace(source, mask_records=masked)
        else:
            left_out.append(name)
    if not kept:
        raise UserError(
            f"no source has a {split} split ({', '.join(left_out)}); tokenize with a larger "
            "--validation_fraction"
        )
    return dataclasses.replace(config, sources=kept), tuple(left_out)


def open_windows(
    config: DataConfig | Mapping[str, Any], split: str = "validation", *, legal_sets: bool = False
) -> Windows:
    """Opens a split of the `data` settings of a run.

    Args:
      config: the `data` settings.
      split: "train" or "validation".
      legal_sets: whether batches contain the legal set of every position.

    Raises:
      UserError: as `with_split`.
    """
    config = parse(DataConfig, config, "data")
    names = tuple(config.sources)
    config, left_out = with_split(config, split)
    datasets = {
        names.index(name): make_dataset(
            dataclasses.replace(config, sources={name: source}),
            split,
            one_pass=True,
            shorten=True,
            legal_sets=legal_sets,
        )
        for name, source in config.sources.items()
    }
    layout = next(iter(datasets.values())).layout
    return Windows(layout, names, datasets, left_out)
