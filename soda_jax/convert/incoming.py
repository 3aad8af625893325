"""What a Hugging Face folder holds: its config, its vocabulary, its weights, checked against each other."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soda_jax.checked_json import DamagedError, parse_checked_json
from soda_jax.convert.architecture import decoder_of, missing
from soda_jax.convert.card import Source
from soda_jax.convert.imported import ExtendedWeights, HuggingFaceWeights
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.to_hf import ABOUT, FORMAT_VERSION, OURS
from soda_jax.convert.weights import Weights
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, check_folder
from soda_jax.model import VocabularyBlocks
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import JsonTokenizer, TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import MARKERS


@dataclasses.dataclass(frozen=True)
class NewRows:
    """How the rows of new ids are made, see `ExtendedWeights`.

    Attributes:
      seed: of the random numbers.
      spread: of them, times the standard deviation of the old rows.
    """

    seed: int = 0
    spread: float = 1.0


def as_it_is(
    source: Path, content: dict[str, Any], tensors: TensorFolder, layout: VocabularyLayout
) -> Weights:
    """The weights of a folder that has SODA's markers and codebooks.

    Args:
      source: the folder.
      content: of its config.json.
      tensors: in it.
      layout: what its tokenizer says.

    Raises:
      UserError: if config.json, tokenizer and tensors do not agree.
    """
    size = _vocabulary_size(content, source / "config.json")
    if size != layout.size:
        raise UserError(
            f"{source / 'config.json'}: vocab_size is {size!r}, tokenizer.json has {layout.size} ids; take "
            "both from the same model"
        )
    blocks = VocabularyBlocks.of(layout)
    config = decoder_of(content, blocks, source / "config.json")
    return HuggingFaceWeights(tensors, config, layout.size)


def extended(
    source: Path,
    content: dict[str, Any],
    tensors: TensorFolder,
    codebook_sizes: tuple[int, ...],
    extend: NewRows,
) -> tuple[TextTokenizer, VocabularyLayout, Weights]:
    """A model of text with rows for markers and codebooks.

    Args:
      source: the folder.
      content: of its config.json.
      tensors: in it.
      codebook_sizes: entries of each codebook.
      extend: how the new rows are made.

    Returns:
      its tokenizer as it is, the new vocabulary, and the weights.

    Raises:
      UserError: as `as_it_is`, or if the folder has all markers already.
    """
    file = source / "config.json"
    text = load_tokenizer(source)
    size = _vocabulary_size(content, file)
    if not isinstance(size, int) or size < text.vocabulary_size:
        raise UserError(
            f"{file}: vocab_size is {size!r}, fewer than the {text.vocabulary_size} ids of tokenizer.json; "
            "take both from the same model"
        )
    ids = {
        token["content"]: int(token["id"])
        for token in read_json(source / "tokenizer.json").get("added_tokens") or []
    }
    if all(marker in ids for marker in MARKERS):
        raise UserError(
            f"{source / 'tokenizer.json'} has the markers {', '.join(MARKERS)} already; convert the folder "
            "without --extend-vocabulary"
        )
    base = HuggingFaceWeights(tensors, decoder_of(content, VocabularyBlocks(size, ()), file), size)
    layout = make_layout(text, codebook_sizes)
    markers = zip(MARKERS, range(layout.text_size, layout.audio_base), strict=True)
    taken_over = {new: ids[marker] for marker, new in markers if marker in ids}
    config = dataclasses.replace(
        base.config,
        vocabulary=VocabularyBlocks.of(layout),
        tie_embeddings=False,
    )
    text = _without_markers(text, taken_over)
    weights = ExtendedWeights(
        base, config, layout.text_size, taken_over, extend.seed, extend.spread
    )
    return text, layout, weights


def _vocabulary_size(content: dict[str, Any], file: Path) -> Any:
    if "vocab_size" not in content:
        raise UserError(missing("vocab_size", file))
    return content["vocab_size"]


def _without_markers(text: TextTokenizer, taken_over: dict[int, int]) -> TextTokenizer:
    """The tokenizer with other names for the tokens whose names are now those of markers."""
    if not taken_over:
        return text
    assert isinstance(text, JsonTokenizer)  # only such a one has names
    description = json.loads(text.content)
    for token in description["added_tokens"]:
        if token["id"] in taken_over.values():
            token["content"] = f"<|replaced_{token['id']}|>"
    renamed = JsonTokenizer(json.dumps(description, ensure_ascii=False))
    if renamed.vocabulary_size != text.vocabulary_size:
        raise UserError(
            "tokenizer.json has pieces that are called like markers and cannot be renamed; take the name "
            f"out of it: {', '.join(MARKERS)}"
        )
    return renamed


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError names the file that is missing or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except FileNotFoundError:
        raise UserError(f"{file} is missing; name the folder of a Hugging Face model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); get it again") from None


def read_about(source: Path) -> dict[str, Any] | None:
    """The `soda.json` of a folder; None for a folder from elsewhere.

    Raises:
      UserError: if a bit of it, or of the tokenizer and the codec that it lists, has changed.
    """
    file = source / ABOUT
    if not file.exists():
        return None
    try:
        about = parse_checked_json(file.read_bytes())
    except (OSError, DamagedError) as error:
        raise UserError(f"{file}: {error}; get it again or export the model again") from None
    if about.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {about.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; use the version of soda_jax that wrote it"
        )
    for key, right in _ABOUT.items():
        if key not in about or not right(about[key]):
            raise UserError(f"{file}: {key} is missing or not what soda writes there; get it again")
    for folder in FRONT_END:
        check_folder(source / OURS, about["front_end"], folder)
    return about


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _views(value: Any) -> bool:
    kinds: dict[str, Any] = {
        "weight": (int, float),
        "order": str,
        "composition": str,
        "codebooks": int,
    }
    return isinstance(value, dict) and all(
        isinstance(view, dict)
        and "weight" in view
        and all(key in kinds and isinstance(x, kinds[key]) for key, x in view.items())
        for view in value.values()
    )


def _card_sources(value: Any) -> bool:
    names = {field.name for field in dataclasses.fields(Source)}
    return isinstance(value, list) and all(
        isinstance(source, dict) and source.keys() == names for source in value
    )


# What each entry of soda.json must be.
_ABOUT: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and 0 <= value < 2**53,
    "windows": lambda value: value is None or type(value) is int,
    "trained_with": _text_or_none,
    "codec_fingerprint": _text_or_none,
    "data_digest": _text_or_none,
    "config": lambda value: isinstance(value, dict),
    "crc32c": lambda value: isinstance(value, dict),
    "front_end": lambda value: isinstance(value, dict),
    "views": _views,
    "sources": _card_sources,
}
