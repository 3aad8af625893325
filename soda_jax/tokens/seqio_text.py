"""seqio's vocabularies as text tokenizers: those of ByT5 (bytes) and of T5, mT5 and others (SentencePiece).

seqio keeps id 0 for padding and 1, as a rule, for EOS. It has no BOS of its own: where the vocabulary
has none, one id behind its last is BOS, because 0 would have no loss in seqio's batches.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.tokens.text import utf8

_FILE, _MODEL = "tokenizer.json", "sentencepiece.model"
_BYTES, _SENTENCEPIECE = "seqio:bytes", "seqio:sentencepiece"


class SeqioTokenizer:
    """A vocabulary of seqio; see `soda_jax.tokens.text.TextTokenizer` for the attributes."""

    def __init__(self, vocabulary: Any, model: Path | None = None):
        """Wraps a vocabulary without extra ids.

        Args:
          vocabulary: `seqio.ByteVocabulary` or `seqio.SentencePieceVocabulary`.
          model: the file of the second; None for bytes.

        Raises:
          UserError: if the model has no EOS.
        """
        self._vocabulary = vocabulary
        self._content = model.read_bytes() if model else None
        size, bos = vocabulary.vocab_size, vocabulary.bos_id
        self.eos = int(vocabulary.eos_id)
        if self.eos < 0:
            raise UserError(f"{model} has no EOS: train it with an eos_id, as for T5")
        self.bos = size if bos is None or bos < 0 else int(bos)
        self.vocabulary_size = max(size, self.bos + 1)
        apart = {vocabulary.pad_id, vocabulary.unk_id, self.bos, self.eos} - {-1}
        if model:
            pieces = vocabulary.tokenizer
            tests = (pieces.is_control, pieces.is_unknown, pieces.is_unused)
            apart |= {i for i in range(size) if any(test(i) for test in tests)}
        self.specials = tuple(sorted(apart))
        self._special = np.zeros(self.vocabulary_size, bool)
        self._special[list(self.specials)] = True
        content = self._content or b"bytes"
        self.fingerprint = hashlib.sha256(b"seqio " + content).hexdigest()[:16]

    def encode(self, text: str) -> np.ndarray:
        """Ordinary ids of `text`, int32 `[tokens]`.

        Raises:
          UserError: for a lone surrogate, or a character that the vocabulary cannot write.
        """
        utf8(text)
        ids = np.array(self._vocabulary.encode(text), np.int32)
        if self._special[ids].any():
            # Control pieces never come from text: it is the unknown piece.
            unknown = "".join(
                sorted({c for c in text if self._special[self._vocabulary.encode(c)].any()})
            )
            raise UserError(f"the tokenizer has no ordinary ids for {unknown or text!r}")
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ordinary ids; special ids are left out, as are bytes that are not UTF-8."""
        array = np.asarray(ids, np.int64)
        inside = array[(array >= 0) & (array < self.vocabulary_size)]
        return self._vocabulary.decode(inside[~self._special[inside]].tolist())

    def save(self, directory: str | Path) -> None:
        """Writes a `tokenizer.json` that names the kind, and the SentencePiece model beside it."""
        folder = Path(directory)
        if self._content is not None:
            write_atomic(folder / _MODEL, self._content)
        kind = _BYTES if self._content is None else _SENTENCEPIECE
        write_atomic(folder / _FILE, json.dumps({"soda": kind}) + "\n")


def load_seqio(spec: str, folder: Path | None = None) -> SeqioTokenizer:
    """Opens a vocabulary of seqio.

    Args:
      spec: "seqio:bytes" or "seqio:sentencepiece:MODEL"; in a saved tokenizer the model goes unnamed.
      folder: of the saved tokenizer.

    Raises:
      UserError: if the spec is unknown, or its model missing or damaged.
    """
    import seqio

    if spec == _BYTES:
        return SeqioTokenizer(seqio.ByteVocabulary())
    if folder and spec == _SENTENCEPIECE:
        spec = f"{_SENTENCEPIECE}:{folder / _MODEL}"
    kind, _, path = spec.rpartition(":")
    if kind != _SENTENCEPIECE or not path:
        where = f"{folder / _FILE} names" if folder else "there is no"
        raise UserError(
            f"{where} tokenizer {spec!r}: those of seqio are {_BYTES} and {_SENTENCEPIECE}:MODEL"
        )
    if not Path(path).is_file():
        raise UserError(f"no SentencePiece model at {path}: give a .model file")
    vocabulary = seqio.SentencePieceVocabulary(path)
    try:
        vocabulary.load_model()
    except Exception as error:  # protobuf's DecodeError or a RuntimeError of the library
        raise UserError(f"{path} is not a SentencePiece model: {error}") from None
    return SeqioTokenizer(vocabulary, Path(path))
