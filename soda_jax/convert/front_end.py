"""Text tokenizer and vocabulary of a Hugging Face folder of SODA's layout, whoever wrote it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_jax.checked_json import parse_checked_json
from soda_jax.convert.tokenizer_files import (
    FILE,
    FIRST_CHARACTER,
    audio_characters,
    check_ids,
    probes,
    text_description,
)
from soda_jax.errors import UserError
from soda_jax.tokens.text import JsonTokenizer, TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

# What `soda convert to-hf` puts beside the files of Transformers.
OWN_FILE, OWN_TOKENIZER = "soda.json", Path("soda", "tokenizer")


def read_front_end(
    folder: Path,
    codebook_sizes: tuple[int, ...] | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[TextTokenizer, VocabularyLayout]:
    """The text tokenizer of a folder and its vocabulary.

    An export of ours keeps both beside its tokenizer.json. In any other folder the markers are found
    among the added tokens: text stands below them, audio characters above.

    Args:
      folder: with a tokenizer.json.
      codebook_sizes: entries of each codebook; None where the folder tells, or where it has the 16,384
        audio ids of 8 codebooks of 2,048.
      tokenizer: the one that the data at hand was tokenised with (see `load_tokenizer`); it must be the
        same but for its file, and is then the one returned, with the fingerprint of that data.

    Raises:
      UserError: naming the file, what is wrong with it, and both sides where two do not agree.
    """
    if (folder / OWN_FILE).is_file() and (folder / OWN_TOKENIZER).is_dir():
        found, layout = _kept(folder)
        if codebook_sizes not in (None, layout.codebook_sizes):
            raise UserError(
                f"{folder / OWN_FILE} has the codebook sizes {_list(layout.codebook_sizes)}, not "
                f"{_list(codebook_sizes or ())}: leave --codebook_sizes out"
            )
    else:
        found, layout = _derived(folder / FILE, codebook_sizes)
    if tokenizer is None:
        return found, layout
    given = load_tokenizer(tokenizer)
    _check_same(given, found, str(tokenizer), str(folder / FILE))
    return given, layout


def _kept(folder: Path) -> tuple[TextTokenizer, VocabularyLayout]:
    """What an export of ours says of itself, compared with its tokenizer.json."""
    own = load_tokenizer(folder / OWN_TOKENIZER)
    file = folder / OWN_FILE
    try:
        layout = VocabularyLayout.from_json(parse_checked_json(file.read_bytes())["layout"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no vocabulary layout ({error!r}): export again") from None
    if make_layout(own, layout.codebook_sizes) != layout:
        raise UserError(f"{file} is not of the tokenizer in {folder / OWN_TOKENIZER}: export again")
    check_ids(_read(folder / FILE), own, layout, str(folder / FILE))
    return own, layout


def _derived(
    file: Path, codebook_sizes: tuple[int, ...] | None
) -> tuple[TextTokenizer, VocabularyLayout]:
    """The tokenizer.json without markers and audio characters, and the layout that it had with them."""
    from tokenizers import Tokenizer

    content = _read(file)
    try:
        description: dict[str, Any] = json.loads(content)
        full = Tokenizer.from_str(content)
        added = sorted(description["added_tokens"], key=lambda token: int(token["id"]))
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    missing = [name for name in MARKERS if name not in ids]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing)} among its added tokens: it is not a SODA model; a "
            "model of text is taken with --extend-vocabulary"
        )
    text_size = ids[MARKERS[0]]
    count = _check_order(file, ids, text_size)
    # The library numbers added tokens itself, whatever the file says.
    for name in (*MARKERS, *audio_characters(count)):
        if full.token_to_id(name) != ids[name]:
            raise UserError(
                f"{file}: {_show(name)} has id {ids[name]} there, and {full.token_to_id(name)} where "
                "it is loaded: the text ids have gaps or ids are taken twice"
            )
    below = [token for token in added if int(token["id"]) < text_size]
    text = JsonTokenizer(
        json.dumps({**description, "added_tokens": below}, ensure_ascii=False), str(file)
    )
    if text.vocabulary_size != text_size:
        raise UserError(
            f"{file}: {MARKERS[0]} has id {text_size}, but the text ids end at "
            f"{text.vocabulary_size - 1}: they must follow each other"
        )
    soda = VocabularyLayout.soda().codebook_sizes
    sizes = codebook_sizes or (soda if count == sum(soda) else None)
    if sizes is None or sum(sizes) != count:
        told = "" if sizes is None else f", --codebook_sizes={_list(sizes)} are {sum(sizes):,}"
        raise UserError(
            f"{file} has {count:,} audio characters{told}: give the sizes of its codebooks with "
            "--codebook_sizes=SIZE,SIZE,…"
        )
    return text, make_layout(text, sizes)


def _check_order(file: Path, ids: dict[str, int], text_size: int) -> int:
    """Number of audio ids; UserError unless markers and audio characters follow the text in order."""
    for wanted, name in enumerate(MARKERS, text_size):
        if ids[name] != wanted:
            raise UserError(
                f"{file}: {name} has id {ids[name]}, and {wanted} is its place: the markers must "
                f"follow each other in the order {', '.join(MARKERS)}"
            )
    base = text_size + len(MARKERS)
    names = {number: name for name, number in ids.items() if number >= base}
    if not names:
        raise UserError(
            f"{file} has no audio characters: id {base}, which is U+{FIRST_CHARACTER:X}, is missing"
        )
    for wanted, character in enumerate(audio_characters(len(names)), base):
        if wanted not in names:
            raise UserError(
                f"{file}: audio characters are missing: id {wanted}, which is "
                f"{_show(character)}, stands nowhere and id {max(names)} does"
            )
        if names[wanted] != character:
            raise UserError(
                f"{file}: id {wanted} is {_show(names[wanted])}, and {_show(character)} belongs there: "
                "audio characters are missing or in another order"
            )
    return len(names)


def _check_same(given: TextTokenizer, found: TextTokenizer, name: str, other: str) -> None:
    """UserError unless two tokenizers have the same pieces, merges, specials and ids of text."""
    mend = "bring the data over with `soda retext`, or name the tokenizer of the model"
    for field in ("vocabulary_size", "bos", "eos"):
        ours, theirs = getattr(given, field), getattr(found, field)
        if ours != theirs:
            raise UserError(f"{name} has {field} {ours}, {other} has {theirs}: {mend}")
    differ = sorted(set(given.specials) ^ set(found.specials))
    if differ:
        where = name if differ[0] in given.specials else other
        raise UserError(f"id {differ[0]} is special in {where} alone: {mend}")
    ours, theirs = (text_description(each)["model"] for each in (given, found))
    for field in ("vocab", "merges"):
        place = _first_difference(_entries(ours, field), _entries(theirs, field))
        if place is not None:
            raise UserError(f"{name} and {other} differ in their {field} at {place}: {mend}")
    for text in probes(given):
        mine, yours = given.encode(text).tolist(), found.encode(text).tolist()
        if mine != yours:
            raise UserError(f"{name} makes {mine} of {text!r}, {other} {yours}: {mend}")


def _entries(model: dict[str, Any], field: str) -> list[Any]:
    """Pieces by id, or merges; the library has written a merge as "a b" and as ["a", "b"]."""
    value = model.get(field) or []
    if isinstance(value, dict):
        return sorted(value.items(), key=lambda item: item[1])
    return [tuple(each.split(" ") if isinstance(each, str) else each) for each in value]


def _first_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    if ours == theirs:
        return None
    same = (mine == yours for mine, yours in zip(ours, theirs, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(ours), len(theirs)))


def _show(name: str) -> str:
    return f"U+{ord(name):X}" if len(name) == 1 else name


def _list(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): give a folder with it"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}") from None
