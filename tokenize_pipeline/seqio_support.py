"""Support for seqio: its vocabularies as text tokenizers, and data sets as seqio Tasks for T5X.

    soda tokenize … --tokenizer=seqio:sentencepiece:MODEL

    from soda_jax.configs import soda_135m
    from tokenize_pipeline.seqio_support import register

    register(soda_135m.get_config().data)  # the mixture "soda" with tasks "soda.yodas2", …

The byte vocabulary of ByT5 and the SentencePiece vocabularies of T5, mT5 and others are supported.
seqio reserves id 0 for padding and usually 1 for EOS. If a vocabulary has no BOS, BOS is the id
after its last id, not the padding id, because seqio masks the loss of id 0.

Each example of a Task is a document whose `targets` are int32 ids from BOS to EOS;
`split_documents` splits long ones. seqio has no reader for ArrayRecord, so a FunctionDataSource
reads the data with `soda_jax.data`.

seqio is imported inside functions, because it imports TensorFlow.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.data.config import views
from soda_jax.data.dataset import open_splits
from soda_jax.data.format.manifest import SPLITS
from soda_jax.data.mixture import normalized_weights
from soda_jax.data.split import Split
from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens.documents import View, render
from soda_jax.tokens.text import utf8

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

_FILE, _MODEL = "tokenizer.json", "sentencepiece.model"
_BYTES, _SENTENCEPIECE = "seqio:bytes", "seqio:sentencepiece"


class SeqioTokenizer:
    """A vocabulary of seqio as a text tokenizer; see `soda_jax.tokens.text.TextTokenizer`."""

    def __init__(self, vocabulary: Any, model: Path | None = None):
        """Wraps a `seqio.ByteVocabulary`, or a `seqio.SentencePieceVocabulary` and its `model` file.

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
        reserved = {vocabulary.pad_id, vocabulary.unk_id, self.bos, self.eos} - {-1}
        if model:
            pieces = vocabulary.tokenizer
            tests = (pieces.is_control, pieces.is_unknown, pieces.is_unused)
            reserved |= {i for i in range(size) if any(test(i) for test in tests)}
        self.specials = tuple(sorted(reserved))
        self._special = np.zeros(self.vocabulary_size, bool)
        self._special[list(self.specials)] = True
        content = self._content or b"bytes"
        self.fingerprint = hashlib.sha256(b"seqio " + content).hexdigest()[:16]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ordinary ids of `text`, int32 `[tokens]`.

        Raises:
          UserError: for a lone surrogate, or a character that the vocabulary cannot represent.
        """
        utf8(text)
        ids = np.array(self._vocabulary.encode(text), np.int32)
        if self._special[ids].any():
            # Text is never encoded as control pieces, so this is the unknown piece.
            unknown = {c for c in text if self._special[self._vocabulary.encode(c)].any()}
            named = "".join(sorted(unknown)) or text
            raise UserError(f"the tokenizer has no ordinary ids for {named!r}")
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids`; skips special ids, out-of-range ids and invalid UTF-8."""
        array = np.asarray(ids, np.int64)
        inside = array[(array >= 0) & (array < self.vocabulary_size)]
        return self._vocabulary.decode(inside[~self._special[inside]].tolist())

    def save(self, directory: str | Path) -> None:
        """Writes a `tokenizer.json` with the kind of the vocabulary, and the SentencePiece model."""
        folder = Path(directory)
        if self._content is not None:
            write_atomic(folder / _MODEL, self._content)
        kind = _BYTES if self._content is None else _SENTENCEPIECE
        write_atomic(folder / _FILE, json.dumps({"soda": kind}) + "\n")


def load_seqio(spec: str, folder: Path | None = None) -> SeqioTokenizer:
    """Opens a vocabulary of seqio.

    Args:
      spec: "seqio:bytes" or "seqio:sentencepiece:MODEL"; a saved tokenizer omits MODEL.
      folder: folder of a saved tokenizer; None for other specs.

    Raises:
      UserError: if the spec is unknown, or its model is missing or damaged.
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


def register(config: Mapping[str, Any], name: str = "soda") -> "seqio.Mixture":
    """Registers a Task for each source of a training config, and their Mixture.

    The rates are the normalized weights of the config, but seqio applies them to examples
    (documents). The shares of tokens are the same only if the documents of all sources have the
    same mean length.

    Args:
      config: `config.data` of a training config; see `soda_jax.schema.DataConfig`.
      name: name of the mixture. Its tasks are named NAME.SOURCE, with _ instead of characters that
        seqio rejects.

    Raises:
      UserError: if the config or a data set is invalid, or the name is already registered.
    """
    import seqio
    import tensorflow as tf

    if name in seqio.MixtureRegistry.names():
        raise UserError(f"seqio has a mixture {name!r} already: give another name")
    data = parse(DataConfig, config, "data")
    weights = normalized_weights({name: source.weight for name, source in data.sources.items()})
    training = open_splits(data, "train")
    layout = training[0].manifest.layout
    vocabulary = seqio.PassThroughVocabulary(layout.size, eos_id=layout.eos)
    features = {"targets": seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)}
    rates = []
    for source in training:
        settings = data.sources[source.name]
        document_views = views(settings, source.manifest, source.name)
        single = dataclasses.replace(data, sources={source.name: settings})
        splits = {
            split: open_splits(single, split)[0]
            for split in SPLITS
            if source.manifest.splits.get(split)
        }
        counts = {split: len(s.documents) * len(document_views) for split, s in splits.items()}
        task = re.sub(r"[^\w.:#]", "_", f"{name}.{source.name}")
        seqio.TaskRegistry.add(
            task,
            source=seqio.FunctionDataSource(_reader(splits, document_views), list(splits), counts),
            preprocessors=[split_documents],
            output_features=features,
        )
        rates.append((task, weights[source.name]))
    return seqio.MixtureRegistry.add(name, rates)


def split_documents(
    dataset: "tf.data.Dataset", sequence_length: Mapping[str, int] | None
) -> "tf.data.Dataset":
    """Splits documents longer than `sequence_length["targets"]`, which seqio would truncate."""
    import tensorflow as tf

    if not sequence_length:
        return dataset
    length = sequence_length["targets"]

    def split(example: dict[str, Any]) -> "tf.data.Dataset":
        ids = example["targets"]
        starts = tf.data.Dataset.range(0, tf.size(ids, tf.int64), length)
        return starts.map(lambda start: {"targets": ids[start : start + length]})

    return dataset.flat_map(split)


def _reader(
    splits: Mapping[str, Split], document_views: Sequence[View]
) -> Callable[..., "tf.data.Dataset"]:
    """Returns the `dataset_fn` of a FunctionDataSource, which yields every document in each view.

    Without shuffling, the examples are ordered by view, then in stored order; with shuffling, each
    iteration has a new permutation. Documents with a masked or damaged record are skipped, because
    the Tasks have no loss mask.
    """

    def read(split: str, shuffle_files: bool, seed: int | None = None) -> "tf.data.Dataset":
        import tensorflow as tf

        generator = np.random.default_rng(seed if seed is None else int(seed))

        def examples() -> Iterator[dict[str, np.ndarray]]:
            source = splits[split]
            documents = source.documents.tolist()
            order = np.arange(len(documents) * len(document_views))
            for number in generator.permutation(order) if shuffle_files else order:
                view, index = divmod(int(number), len(documents))
                document = source.read_document(*documents[index])
                if document is not None:
                    ids = render(document[1], document_views[view], source.manifest.layout)
                    yield {"targets": ids}

        return tf.data.Dataset.from_generator(
            examples, output_signature={"targets": tf.TensorSpec([None], tf.int32)}
        )

    return read
