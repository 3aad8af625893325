"""Defines text tokenizers that return only ordinary text ids, whatever the text contains.

There are tokenizers for UTF-8 bytes and for any Hugging Face `tokenizer.json` (read by the library
`tokenizers`); `train_bpe` (`soda tokenizer train`) trains a byte-level BPE. seqio vocabularies are
supported by `tokenize_pipeline.seqio_support`.
"""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.registry import TEXT_TOKENIZERS
from soda_jax.tokens.coverage import CoverageCheck
from soda_jax.tokens.vocabulary import VocabularyLayout

BOS_NAMES = ("<|begin_of_text|>", "<|bos|>", "<s>", "<bos>", "<|endoftext|>")
EOS_NAMES = ("<|end_of_text|>", "<|eos|>", "</s>", "<eos>", "<|im_end|>", "<|endoftext|>")
_FILE = "tokenizer.json"


class TextTokenizer(Protocol):
    """The interface of a text tokenizer.

    Attributes:
      vocabulary_size: number of text ids, including special ids.
      specials: ids that `encode` never returns, ascending.
      bos: special id that begins a document.
      eos: special id that ends a document.
      fingerprint: hash of the tokenizer; equal tokenizers have equal fingerprints.
    """

    vocabulary_size: int
    specials: tuple[int, ...]
    bos: int
    eos: int
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Returns the ordinary text ids of `text`, int32 `[tokens]`."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ordinary ids; special ids are ignored."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer so that `load_tokenizer(directory)` opens an equal one."""
        ...


def utf8(text: str) -> bytes:
    """Returns `text` as UTF-8; raises UserError if it contains a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"text is not valid Unicode: {error}") from None


class ByteTokenizer:
    """A tokenizer for UTF-8 bytes, which are the ids 0–255; BOS is 256 and EOS is 257."""

    vocabulary_size = 258
    specials: tuple[int, ...] = (256, 257)
    bos, eos = 256, 257
    fingerprint = hashlib.sha256(b"utf-8 bytes, BOS 256, EOS 257").hexdigest()[:16]

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of `text`; raises UserError if it contains a lone surrogate."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of byte ids; other ids are ignored, invalid UTF-8 becomes U+FFFD."""
        return bytes(i for i in np.asarray(ids).tolist() if 0 <= i < 256).decode("utf-8", "replace")

    def save(self, directory: str | Path) -> None:
        """Writes a `tokenizer.json` that names the byte tokenizer."""
        write_atomic(Path(directory) / _FILE, json.dumps({"soda": "bytes"}) + "\n")


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`, with all added tokens removed from the encoder.

    A literal `<|audio_start|>` or `</s>` in a transcript is therefore split like any other text. A
    text that the ids do not represent completely is rejected; see `coverage`.

    Attributes:
      content: the JSON text.
    """

    def __init__(self, content: str, source: str = _FILE):
        """Parses the JSON text `content`; `source` is its name in error messages.

        Raises:
          UserError: if `content` is not a `tokenizer.json`, or its added tokens include no BOS or
            EOS.
        """
        from tokenizers import Tokenizer

        try:
            description: dict[str, Any] = json.loads(content)
            full = Tokenizer.from_str(content)
            added = description.get("added_tokens") or []
            by_name = {token["content"]: int(token["id"]) for token in added}
            apart = set(by_name.values()) | _unknown_ids(description["model"])
            self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
            model = _without_pieces(description["model"], apart, self.fingerprint)
            plain = {**description, "added_tokens": [], "post_processor": None, "model": model}
            plain["truncation"] = plain["padding"] = None
            if model.get("dropout"):  # BPE dropout would change the ids between calls
                plain["model"] = {**model, "dropout": None}
            self._plain = Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{source} is not a tokenizer.json: {error}") from None
        self.content = content
        ids = [*full.get_vocab().values(), *(int(token["id"]) for token in added)]
        self.vocabulary_size = max(ids, default=0) + 1
        self.bos = _named(by_name, BOS_NAMES, "BOS", source)
        others = {name: i for name, i in by_name.items() if i != self.bos}
        self.eos = _named(others, EOS_NAMES, "EOS", source)
        used = set(self._plain.get_vocab(with_added_tokens=False).values())
        holes = set(range(self.vocabulary_size)) - used
        self.specials = tuple(sorted(set(by_name.values()) | holes))
        self._refused = np.zeros(self.vocabulary_size, bool)
        self._refused[list({*self.specials, *apart})] = True
        self._coverage = CoverageCheck(plain, self._plain, self._refused)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ordinary ids of `text`, int32 `[tokens]`.

        Raises:
          UserError: if `text` contains a lone surrogate, or the ids do not represent all of it.
        """
        utf8(text)
        ids = None
        with contextlib.suppress(Exception):  # raised if the vocabulary has no unknown token
            ids = np.array(self._plain.encode(text, add_special_tokens=False).ids, np.int32)
        self._coverage.check(text, ids)
        assert ids is not None
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ordinary ids; special ids are ignored."""
        array = np.asarray(ids, np.int64)
        inside = array[(array >= 0) & (array < self.vocabulary_size)]
        return self._plain.decode(inside[~self._refused[inside]].tolist())

    def save(self, directory: str | Path) -> None:
        """Writes the `tokenizer.json` unchanged."""
        write_atomic(Path(directory) / _FILE, self.content)


def _unknown_ids(model: dict[str, Any]) -> set[int]:
    """Returns a set with the id for unknown text; the set is empty if the model has no such id."""
    if isinstance(model["vocab"], dict):
        number = model["vocab"].get(model.get("unk_token"))
    else:
        number = model.get("unk_id")
    return set() if number is None else {number}


def _without_pieces(model: dict[str, Any], ids: set[int], secret: str) -> dict[str, Any]:
    """Returns the model with the pieces `ids` renamed to strings that no text contains.

    Merges that use or produce these pieces are removed. SentencePiece vocabularies contain `<s>`
    and `</s>` as ordinary pieces, which would otherwise match the same characters in a text.
    """
    vocabulary = model["vocab"]
    is_dict = isinstance(vocabulary, dict)
    pairs = vocabulary.items() if is_dict else ((p[0], i) for i, p in enumerate(vocabulary))
    names = {piece: f"\U0010ffff{secret}:{i}" for piece, i in pairs if i in ids}
    if not names:
        return model
    changed = dict(model)
    if is_dict:
        changed["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:
        changed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        prefix = len(model.get("continuing_subword_prefix") or "")
        changed["merges"] = [
            merge
            for merge in model["merges"]
            for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
            if names.keys().isdisjoint((left, right, left + right[prefix:]))
        ]
    return changed


def _named(by_name: dict[str, int], names: Sequence[str], role: str, source: str) -> int:
    for name in names:
        if name in by_name:
            return by_name[name]
    raise UserError(f"{source} has no {role} among its added tokens: add one of {', '.join(names)}")


def load_tokenizer(spec: str | Path) -> TextTokenizer:
    """Loads a text tokenizer.

    A registered tokenizer is a function with two arguments: the text after the colon, and the
    folder of the saved `tokenizer.json` (None if `spec` is a registered name). The function returns
    a tokenizer whose `save` writes a `tokenizer.json` with `{"soda": "NAME:ARGUMENT"}`.

    Args:
      spec: "bytes", a `tokenizer.json` or its folder, or NAME:ARGUMENT of a registered tokenizer,
        such as "seqio:bytes" and "seqio:sentencepiece:MODEL" (these need the extra `seqio`).

    Raises:
      UserError: if a file is missing or is not a `tokenizer.json`.
    """
    name, _, argument = str(spec).partition(":")
    if name in TEXT_TOKENIZERS:
        return TEXT_TOKENIZERS.get(name, "--tokenizer")(argument, None)
    path = Path(spec)
    file = path / _FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"no tokenizer at {spec}: give a tokenizer.json, its folder, or one of "
            f"{', '.join(TEXT_TOKENIZERS.names())}"
        )
    try:
        content = file.read_text("utf-8")
        kind = json.loads(content).get("soda")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    if not isinstance(kind, str):
        return JsonTokenizer(content, str(file))
    name, _, argument = kind.partition(":")
    return TEXT_TOKENIZERS.get(name, f"{file}: soda")(argument, file.parent)


@TEXT_TOKENIZERS.register("bytes")
def _load_bytes(argument: str, folder: Path | None) -> TextTokenizer:
    return ByteTokenizer()


@TEXT_TOKENIZERS.register("seqio")
def _load_seqio(argument: str, folder: Path | None) -> TextTokenizer:
    # Imported by name, because `tokenize_pipeline` is in a higher layer.
    seqio_support = importlib.import_module("tokenize_pipeline.seqio_support")
    return seqio_support.load_seqio(f"seqio:{argument}", folder)


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> JsonTokenizer:
    """Trains a byte-level BPE on `texts`; the tokenizer encodes every text without loss.

    Args:
      texts: the training texts.
      vocabulary_size: number of ids, at least 258, including BOS and EOS (the last two); the result
        is smaller if `texts` contain too few pairs to merge.

    Raises:
      UserError: if `vocabulary_size` is less than 258.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary_size < 258:
        raise UserError(
            f"vocabulary_size {vocabulary_size} is too small: 256 bytes, BOS and EOS need 258 ids"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(BOS_NAMES[0], special=True), AddedToken(EOS_NAMES[0], special=True)]
    )
    return JsonTokenizer(tokenizer.to_str(), "the trained tokenizer")


def make_layout(tokenizer: TextTokenizer, codebook_sizes: Sequence[int]) -> VocabularyLayout:
    """Returns the vocabulary layout for a text tokenizer and the codebooks of a codec."""
    return VocabularyLayout(
        tokenizer.vocabulary_size,
        tuple(tokenizer.specials),
        tokenizer.bos,
        tokenizer.eos,
        tuple(codebook_sizes),
    )
