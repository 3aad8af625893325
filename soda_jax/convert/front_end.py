"""Reads the text tokenizer and the vocabulary layout of a Hugging Face folder."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from soda_jax.checked_json import parse_checked_json
from soda_jax.convert.tokenizer_files import (
    FILE,
    audio_characters,
    check_ids,
    probes,
    text_description,
)
from soda_jax.errors import UserError
from soda_jax.tokens.text import JsonTokenizer, TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

# Files that `soda convert to-hf` writes.
_ABOUT, _TOKENIZER = "soda.json", Path("soda", "tokenizer")
_ADDED = "added_tokens.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_object(file: Path, required: bool = False) -> dict[str, Any]:
    """Returns the JSON object in a file, or `{}` if the file is missing and not required.

    Raises:
      UserError: if the file is not a JSON object, or is missing and required.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except FileNotFoundError:
        if not required:
            return {}
        raise UserError(f"{file} is missing; pass the folder of a Hugging Face model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); download it again") from None


def read_front_end(
    folder: Path,
    codebook_sizes: tuple[int, ...] | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[TextTokenizer, VocabularyLayout]:
    """Returns the text tokenizer and the vocabulary layout of a folder.

    A folder written by `soda convert to-hf` contains both. In any other folder, the layout is
    derived from the added tokens of tokenizer.json: ids below the markers are text, ids above
    them are audio.

    Args:
      folder: a folder with a tokenizer.json.
      codebook_sizes: number of entries of each codebook. It may be None for a folder
        written by `soda convert to-hf`, a model without audio ids, or one
        with SODA's 16,384 audio ids (8 codebooks of 2,048).
      tokenizer: text tokenizer of the data, as a spec of `load_tokenizer`. It must have the same
        pieces, merges, special ids and encodings as the folder's tokenizer. It is then
        the one returned, because the data contains its fingerprint, not the folder's.

    Raises:
      UserError: if a file cannot be read, or if the files or the tokenizers do not match.
    """
    if (folder / _ABOUT).is_file() and (folder / _TOKENIZER).is_dir():
        found, layout = _recorded(folder)
        if codebook_sizes not in (None, layout.codebook_sizes):
            raise UserError(
                f"{folder / _ABOUT} has the codebook sizes {_comma(layout.codebook_sizes)}, not "
                f"{_comma(codebook_sizes or ())}: omit --codebook_sizes"
            )
    else:
        found, layout = _derived(folder / FILE, codebook_sizes)
    if tokenizer is None:
        return found, layout
    given = load_tokenizer(tokenizer)
    _check_same(given, found, str(tokenizer), str(folder / FILE))
    return given, layout


def _recorded(folder: Path) -> tuple[TextTokenizer, VocabularyLayout]:
    """Returns the tokenizer and the layout of a folder written by `soda convert to-hf`.

    Raises:
      UserError: if they disagree with each other or with the tokenizer.json.
    """
    text = load_tokenizer(folder / _TOKENIZER)
    file = folder / _ABOUT
    try:
        layout = VocabularyLayout.from_json(parse_checked_json(file.read_bytes())["layout"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no vocabulary layout ({error!r}): export again") from None
    if make_layout(text, layout.codebook_sizes) != layout:
        raise UserError(
            f"{file} disagrees with the tokenizer in {folder / _TOKENIZER}: export again"
        )
    check_ids(_read_text(folder / FILE), text, layout, str(folder / FILE))
    return text, layout


def _derived(
    file: Path, codebook_sizes: tuple[int, ...] | None
) -> tuple[TextTokenizer, VocabularyLayout]:
    """Derives the text tokenizer and the vocabulary layout from a tokenizer.json.

    The returned tokenizer has no markers or audio characters; only the layout contains them.
    """
    from tokenizers import Tokenizer

    content = _read_text(file)
    try:
        description: dict[str, Any] = json.loads(content)
        loaded = Tokenizer.from_str(content)
        added = sorted(description["added_tokens"], key=lambda token: int(token["id"]))
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    missing = [name for name in MARKERS if name not in ids]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing)} among its added tokens: it is not a SODA model; convert "
            "a text model with --extend-vocabulary"
        )
    text_size = ids[MARKERS[0]]
    count = sum(number >= text_size + len(MARKERS) for number in ids.values())
    for wanted, name in enumerate((*MARKERS, *audio_characters(max(count, 1))), text_size):
        # The tokenizers library ignores the ids of added tokens and numbers them consecutively.
        found = ids.get(name), loaded.token_to_id(name)
        if found != (wanted, wanted):
            shown = f"U+{ord(name):X}" if len(name) == 1 else name
            raise UserError(
                f"{file}: {shown} has id {found[0]} in the file and {found[1]} when loaded, expected "
                f"{wanted}: the ids of text, {', '.join(MARKERS)} and audio must be consecutive"
            )
    below = [token for token in added if int(token["id"]) < text_size]
    text = JsonTokenizer(
        json.dumps({**description, "added_tokens": below}, ensure_ascii=False), str(file)
    )
    if text.vocabulary_size != text_size:
        raise UserError(
            f"{file}: {MARKERS[0]} has id {text_size}, but the last text id is "
            f"{text.vocabulary_size - 1}: they must be consecutive"
        )
    soda = VocabularyLayout.soda().codebook_sizes
    sizes = codebook_sizes or (soda if count == sum(soda) else ())
    if sum(sizes) != count:
        given = f", --codebook_sizes={_comma(sizes)} sum to {sum(sizes):,}" if sizes else ""
        raise UserError(
            f"{file} has {count:,} audio characters{given}: give the sizes of its codebooks with "
            "--codebook_sizes=SIZE,SIZE,…"
        )
    return text, make_layout(text, sizes)


def _check_same(given: TextTokenizer, found: TextTokenizer, name: str, other: str) -> None:
    """Raises UserError unless two tokenizers have the same pieces, merges, special ids and encodings."""
    fix = "convert the data with `soda retext`, or give the tokenizer of the model"
    models = [text_description(each)["model"] for each in (given, found)]
    pairs = {
        field: [[getattr(each, field)] for each in (given, found)]
        for field in ("vocabulary_size", "bos", "eos")
    }
    pairs["special ids"] = [list(each.specials) for each in (given, found)]
    for field in ("vocab", "merges"):
        pairs[field] = [_entries(model.get(field) or []) for model in models]
    for field, (ours, theirs) in pairs.items():
        for mine, yours in zip_longest(ours, theirs):
            if mine != yours:
                raise UserError(f"{name} has {field} {mine}, {other} has {yours} instead; {fix}")
    for text in probes(given):
        mine, yours = given.encode(text).tolist(), found.encode(text).tolist()
        if mine != yours:
            raise UserError(f"{name} encodes {text!r} as {mine}, {other} as {yours}; {fix}")


def _entries(value: Any) -> list[Any]:
    """Returns the pieces sorted by id, or the merges as tuples.

    A merge is "a b" or ["a", "b"], depending on the version of the tokenizers library.
    """
    if isinstance(value, dict):
        return sorted(value.items(), key=lambda item: item[1])
    return [tuple(each.split(" ") if isinstance(each, str) else each) for each in value]


def check_token_files(folder: Path) -> None:
    """Compares `tokenizer.json` with the tokenizer files that only Transformers reads.

    These are `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    Transformers reads the names of BOS and EOS from them. If they have tokens that `tokenizer.json`
    lacks, it adds them with the next free ids, even if the files have other ids.

    Args:
      folder: folder of a Hugging Face model; all files except `tokenizer.json` are optional.

    Raises:
      UserError: if a file has a token that `tokenizer.json` lacks or has with another id.
    """
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{folder / FILE} is not a tokenizer.json: {error}") from None
    for name in ("tokenizer_config.json", "special_tokens_map.json", _ADDED):
        for token, number in _named_tokens(folder / name):
            found = loaded.token_to_id(token)
            if found is None or number not in (None, found):
                there = "lacks it" if found is None else f"has it as id {found}"
                here = "" if number is None else f" with id {number}"
                raise UserError(
                    f"{folder / name} has the token {token!r}{here}, tokenizer.json {there}; save the "
                    "tokenizer again with Transformers (save_pretrained), or take both from the same model"
                )


def _named_tokens(file: Path) -> Iterator[tuple[str, int | None]]:
    """Yields (token, id) for every token named in a file; the id is None if the file has none."""
    content = read_object(file)
    if file.name == _ADDED:
        yield from content.items()
        return
    decoder = content.get("added_tokens_decoder")
    tokens: list[tuple[Any, int | None]] = []
    if isinstance(decoder, dict):
        tokens += [(token, int(number)) for number, token in decoder.items()]
    for key, value in content.items():
        if key in _LISTS:
            many = value.values() if isinstance(value, dict) else value or []
            tokens += [(token, None) for token in many]
        elif key.endswith("_token"):
            tokens.append((value, None))
    for token, number in tokens:
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str) and name:
            yield name, number


def check_ends(folder: Path, content: dict[str, Any], layout: VocabularyLayout) -> None:
    """Compares BOS and EOS of the tokenizer with the ids in the config files of a SODA model.

    Args:
      folder: folder of the model.
      content: content of the folder's `config.json`.
      layout: vocabulary layout of the folder's tokenizer.

    Raises:
      UserError: if the config files set BOS or EOS to other ids than the tokenizer's; the model
        was then trained on documents that begin or end with another token.
    """
    generation = read_object(folder / "generation_config.json")
    for key, wanted in (("bos_token_id", layout.bos), ("eos_token_id", layout.eos)):
        ids: list[Any] = []
        for value in (content.get(key), generation.get(key)):
            # `eos_token_id` may be a list that also contains markers at which generation stops.
            ids += value if isinstance(value, list) else [] if value is None else [value]
        if ids and wanted not in ids:
            raise UserError(
                f"{folder}: {key} is {ids[0]} in config.json or generation_config.json, but "
                f"tokenizer.json has {wanted}; set both to the id that the model was trained with"
            )


def _comma(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): give a folder with a valid tokenizer.json"
        ) from None
