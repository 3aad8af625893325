"""Parameters in a folder of safetensors, as they are and with rows for a larger vocabulary."""

from collections.abc import Mapping

import numpy as np

from soda_jax.convert import names
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.weights import Weights, layer_shapes, row_blocks
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig


class HuggingFaceWeights:
    """The parameters of a Qwen3 folder, in f32; see `weights.Weights`."""

    def __init__(self, folder: TensorFolder, config: DecoderConfig, vocabulary: int):
        """Checks names and shapes.

        Args:
          folder: opened.
          config: the decoder's shape, as its `config.json` has it; its vocabulary's size may be another.
          vocabulary: rows of the folder's embedding and head.

        Raises:
          UserError: naming the tensor that is missing, too much, or of another shape; or a head that a
            tied model brings and that is not its embedding.
        """
        self.config, self._folder = config, folder
        if config.num_layers > len(folder.tensors):  # the list of their names would be as long
            raise UserError(
                f"{folder.path}: config.json has num_hidden_layers {config.num_layers:,}, and there are "
                f"{len(folder.tensors):,} tensors in all; take the config.json of these weights"
            )
        expected = names.tensor_shapes(config, vocabulary)
        # Some tied models are published with the head beside the embedding.
        twice = config.tie_embeddings and names.HEAD in folder.tensors
        if twice:
            expected[names.HEAD] = (vocabulary, config.hidden_size)
        folder.check(expected)
        if twice:
            self._compare_head(vocabulary)
        self._shapes = layer_shapes(config)

    def _compare_head(self, vocabulary: int) -> None:
        for first, last in row_blocks(vocabulary):
            pair = [self._folder.read(name, first, last) for name in (names.EMBEDDING, names.HEAD)]
            if not np.array_equal(pair[0], pair[1]):
                raise UserError(
                    f"{self._folder.path}: config.json says that the embeddings are tied, but "
                    f"{names.HEAD} is not {names.EMBEDDING}; Transformers 5 uses both, older releases "
                    "only the embedding: set tie_word_embeddings to false if the head is meant"
                )

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """See `Weights`."""
        found = {}
        for name, place in names.LAYER.items():
            theirs = self._folder.read_f32(names.layer_name(number, place))
            found[name] = names.inward(theirs, place, self._shapes[name])
        return found

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        name = names.EMBEDDING if self.config.tie_embeddings else names.TABLE_NAMES[table]
        return self._folder.read_f32(name, first, last)

    def final_norm(self) -> np.ndarray:
        """See `Weights`."""
        return self._folder.read_f32(names.FINAL_NORM)


class ExtendedWeights:
    """A model of text with rows for markers and audio, its embedding no longer tied to its head.

    A new row is drawn from a normal distribution with the mean and the standard deviation that each
    column has over the old rows; the same seed gives the same rows.

    Attributes:
      base: the model of text.
    """

    def __init__(
        self,
        base: Weights,
        config: DecoderConfig,
        old_rows: int,
        taken_over: Mapping[int, int],
        seed: int,
        spread: float = 1.0,
    ):
        """Measures the old rows.

        Args:
          base: the model of text.
          config: the decoder's shape with its new vocabulary; not tied.
          old_rows: ids that keep their rows, from 0 on; rows that the base has beyond are dropped.
          taken_over: new id → old id whose row it gets, for special tokens of the same name.
          seed: of the new rows.
          spread: factor of the standard deviation; 0 gives every new row the mean.
        """
        self.config, self.base, self._old = config, base, old_rows
        self._taken_over, self._seed, self._spread = dict(taken_over), seed, spread
        self._moments = {table: self._measure(table) for table in ("embedding", "head")}

    def _measure(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros(self.config.hidden_size)
        squares = np.zeros(self.config.hidden_size)
        for first, last in row_blocks(self._old):
            total += self.base.rows(table, first, last).sum(0, dtype=np.float64)
        mean = total / self._old
        for first, last in row_blocks(self._old):
            squares += np.square(self.base.rows(table, first, last) - mean).sum(0)
        return mean, np.sqrt(squares / self._old)

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """See `Weights`."""
        return self.base.layer(number)

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        found = np.empty((last - first, self.config.hidden_size), np.float32)
        kept = min(max(self._old - first, 0), last - first)
        if kept:
            found[:kept] = self.base.rows(table, first, first + kept)
        for place in range(kept, last - first):
            found[place] = self._new_row(table, first + place)
        return found

    def _new_row(self, table: str, token: int) -> np.ndarray:
        if token in self._taken_over:
            old = self._taken_over[token]
            return self.base.rows(table, old, old + 1)[0]
        mean, deviation = self._moments[table]
        # A stream of its own for each row, so that it does not matter in which blocks they are read.
        random = np.random.default_rng((self._seed, table == "head", token))
        return mean + self._spread * deviation * random.standard_normal(self.config.hidden_size)

    def final_norm(self) -> np.ndarray:
        """See `Weights`."""
        return self.base.final_norm()
