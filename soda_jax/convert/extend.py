"""Adds embedding and head rows for the markers and the audio ids to a text model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.convert.architecture import decoder_of
from soda_jax.convert.qwen3 import HuggingFaceWeights
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.weights import TABLES, Weights, row_blocks
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, VocabularyBlocks
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import JsonTokenizer, TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import MARKERS


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Normal distribution, one per column, from which the rows of new ids are sampled.

    Attributes:
      seed: seed of the random numbers.
      spread: standard deviation relative to that of the old rows; with 0, every new row is the mean
        of the old rows.
    """

    seed: int = 0
    spread: float = 1.0


class ExtendedWeights(Weights):
    """A text model with new rows for markers and audio, and with untied embedding and head.

    Attributes:
      base: the text model.
    """

    def __init__(
        self,
        base: Weights,
        config: DecoderConfig,
        old_rows: int,
        reused: Mapping[int, int],
        new: NewRows,
    ):
        """Computes the mean and the standard deviation of the old rows.

        Args:
          base: the text model.
          config: decoder config with the new vocabulary and untied embeddings.
          old_rows: number of leading ids that keep their rows; later rows of the base are dropped.
          reused: new id -> old id whose row is copied; for markers that the base already has as
            special tokens.
          new: initialization of the other rows.
        """
        self.config, self.base, self._old = config, base, old_rows
        self._reused, self._new = dict(reused), new
        self._moments = {table: self._measure(table) for table in TABLES}

    def _measure(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros(self.config.hidden_size)
        squares = np.zeros(self.config.hidden_size)
        for first, last in row_blocks(self._old):
            total += self.base.read(table, first, last).sum(0, dtype=np.float64)
        mean = total / self._old
        for first, last in row_blocks(self._old):
            squares += np.square(self.base.read(table, first, last) - mean).sum(0)
        return mean, np.sqrt(squares / self._old)

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        if name not in TABLES:
            return self.base.read(name, first, last)
        found = np.empty((last - first, self.config.hidden_size), np.float32)
        kept = min(max(self._old - first, 0), last - first)
        if kept:
            found[:kept] = self.base.read(name, first, first + kept)
        mean, deviation = self._moments[name]
        for token in range(first + kept, last):
            if token in self._reused:
                old = self._reused[token]
                found[token - first] = self.base.read(name, old, old + 1)[0]
                continue
            # One random stream per row makes the result independent of how the rows are sliced.
            random = np.random.default_rng((self._new.seed, name == "head", token))
            noise = random.standard_normal(self.config.hidden_size)
            found[token - first] = mean + self._new.spread * deviation * noise
        return found


def extend_vocabulary(
    source: Path,
    content: dict[str, Any],
    vocabulary: int,
    tensors: TensorFolder,
    codebook_sizes: tuple[int, ...],
    new: NewRows,
) -> tuple[TextTokenizer, VocabularyLayout, ExtendedWeights]:
    """Adds markers and audio ids to the text model of a folder.

    Args:
      source: folder of the text model.
      content: content of the folder's config.json.
      vocabulary: number of rows of the text model's embedding.
      tensors: tensors of the folder.
      codebook_sizes: number of entries of each codebook.
      new: initialization of the new rows.

    Returns:
      the text tokenizer, the new vocabulary layout, and the extended weights.

    Raises:
      UserError: if config.json, tokenizer and tensors disagree, or the tokenizer already has all
        markers, or has tokens with the names of markers that cannot be renamed.
    """
    file = source / "config.json"
    text = load_tokenizer(source)
    if vocabulary < text.vocabulary_size:
        raise UserError(
            f"{file}: vocab_size is {vocabulary}, fewer than the {text.vocabulary_size} ids of "
            "tokenizer.json; take both from the same model"
        )
    assert isinstance(text, JsonTokenizer)
    description = json.loads(text.content)
    added = description.get("added_tokens") or []
    ids = {token["content"]: int(token["id"]) for token in added}
    if all(marker in ids for marker in MARKERS):
        raise UserError(
            f"{source / 'tokenizer.json'} already has the markers {', '.join(MARKERS)}; convert the folder "
            "without --extend-vocabulary"
        )
    base_config = decoder_of(content, VocabularyBlocks(vocabulary, ()), file)
    base = HuggingFaceWeights(tensors, base_config, vocabulary)
    layout = make_layout(text, codebook_sizes)
    markers = zip(MARKERS, range(layout.text_size, layout.audio_base), strict=True)
    reused = {new_id: ids[marker] for marker, new_id in markers if marker in ids}
    config = dataclasses.replace(
        base_config,
        vocabulary=VocabularyBlocks.of(layout),
        tie_embeddings=False,
    )
    if reused:  # the markers need these names, so the old tokens are renamed
        for token in added:
            if token["id"] in reused.values():
                token["content"] = f"<|replaced_{token['id']}|>"
        text = JsonTokenizer(json.dumps(description, ensure_ascii=False))
        if text.vocabulary_size != layout.text_size:
            raise UserError(
                f"{source / 'tokenizer.json'} has tokens with the names of the markers "
                f"{', '.join(MARKERS)} that cannot be renamed; remove them"
            )
    return text, layout, ExtendedWeights(base, config, layout.text_size, reused, new)
