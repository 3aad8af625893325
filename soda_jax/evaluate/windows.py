"""The windows of a split, source by source, in the views of training."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.data import config as data_config
from soda_jax.data.dataset import Dataset
from soda_jax.data.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.tokens import VocabularyLayout


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Every whole window of a split once.

    A source that is shorter than one window of training is read as a single window of its own
    length; a source without the split is left out, and the others do not suffer from it.

    Attributes:
      layout: the vocabulary.
      source_names: all sources of the config, those left out included.
      datasets: by number of the source; each holds that source alone.
      left_out: names of the sources without the split.
    """

    layout: VocabularyLayout
    source_names: tuple[str, ...]
    datasets: Mapping[int, Dataset]
    left_out: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of windows."""
        return sum(dataset.windows or 0 for dataset in self.datasets.values())

    def batches(
        self, size: int, rows: Sequence[int] | None = None, limit: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches as `soda_jax.data.windows.Batch`, as dicts; a batch holds one source.

        Args:
          size: windows of a batch; the last of a source is filled up with rows without loss.
          rows: which rows of each batch to read, all by default.
          limit: about that many batches, spread evenly, at least one a source; 0 for all.
        """
        rows = range(size) if rows is None else rows
        for number, start in self._places(size, limit):
            batch = self.datasets[number].batch(start, rows)
            source = np.full(len(rows), number, np.int32)
            yield batch._replace(source=source)._asdict()

    def batch_count(self, size: int, limit: int = 0) -> int:
        """How many batches `batches` yields."""
        return len(self._places(size, limit))

    def _places(self, size: int, limit: int) -> list[tuple[int, int]]:
        places = [
            (number, start)
            for number, dataset in self.datasets.items()
            for start in range(0, dataset.windows or 0, size)
        ]
        if not limit or limit >= len(places):
            return places
        spread = {places[index * len(places) // limit] for index in range(limit)}
        return sorted(spread | {(number, 0) for number in self.datasets})


def with_split(config: Mapping[str, Any], split: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data part of a config with the sources that have the split, and the names of the others.

    Lists of masked records name records of the training split and do not apply to another one.

    Raises:
      UserError: if a manifest cannot be read, or no source has the split.
    """
    config = data_config.complete(config)
    kept, left_out = {}, []
    for name, source in config["sources"].items():
        if Manifest.load(source["path"], source["generation"]).totals(split)["records"]:
            kept[name] = source if split == "train" else {**source, "masked": ""}
        else:
            left_out.append(name)
    if not kept:
        raise UserError(
            f"no source has a {split} split ({', '.join(left_out)}); tokenize with a larger "
            "--validation_fraction"
        )
    return {**config, "sources": kept}, tuple(left_out)


def open_windows(config: Mapping[str, Any], split: str = "validation") -> Windows:
    """Opens a split of the data part of a config; raises UserError as `with_split` does."""
    names = tuple(data_config.complete(config)["sources"])
    config, left_out = with_split(config, split)
    datasets: dict[int, Dataset] = {}
    for name, source in config["sources"].items():
        alone = {**config, "sources": {name: source}}
        whole = Dataset({**alone, "sequence_length": 2}, split, one_pass=True).sources[0]
        length = min(config["sequence_length"], whole.tokens)
        alone["sequence_length"] = length
        datasets[names.index(name)] = Dataset(alone, split, one_pass=True)
    layout = next(iter(datasets.values())).layout
    return Windows(layout, names, datasets, left_out)
