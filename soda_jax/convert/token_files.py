"""Files next to `tokenizer.json` that may give Transformers other tokens than it has.

We read `tokenizer.json` only. Transformers also reads `tokenizer_config.json`, `special_tokens_map.json` and
`added_tokens.json`, adds the tokens that are missing there with the next free ids, whatever id the file
gives, and takes the names of BOS and EOS from them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.tokens import VocabularyLayout

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def check_token_files(folder: Path) -> None:
    """Compares the tokens that those files name with `tokenizer.json`.

    Args:
      folder: of a Hugging Face model; all files but `tokenizer.json` may be missing.

    Raises:
      UserError: naming the file and the token that `tokenizer.json` lacks or has under another id.
    """
    from tokenizers import Tokenizer

    try:
        full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{folder / 'tokenizer.json'} is not a tokenizer.json: {error}") from None
    for file in (_CONFIG, _MAP, _ADDED):
        for name, number in _tokens(folder / file):
            found = full.token_to_id(name)
            if found is None or number not in (None, found):
                there = "lacks it" if found is None else f"has it as id {found}"
                here = "" if number is None else f" with id {number}"
                raise UserError(
                    f"{folder / file} has the token {name!r}{here}, tokenizer.json {there}; save the "
                    "tokenizer again with Transformers (save_pretrained), or take both from the same model"
                )


def check_ends(folder: Path, content: dict[str, Any], layout: VocabularyLayout) -> None:
    """Compares BOS and EOS of a SODA model with the ids that its configs name.

    Args:
      folder: of the model.
      content: of its `config.json`.
      layout: of its tokenizer; markers of text and sound may end a generation too.

    Raises:
      UserError: if the files name others and not these: documents of the model end with another token.
    """
    generation = _object(folder / "generation_config.json")
    for key, wanted in (("bos_token_id", layout.bos), ("eos_token_id", layout.eos)):
        given = [value for value in (content.get(key), generation.get(key)) if value is not None]
        ids = [x for value in given for x in (value if isinstance(value, list) else [value])]
        if ids and wanted not in ids:
            raise UserError(
                f"{folder}: {key} is {ids[0]} in config.json or generation_config.json, and {wanted} by "
                "the names in tokenizer.json; give both the token that documents were trained with"
            )


def _tokens(file: Path) -> Iterator[tuple[str, int | None]]:
    content = _object(file)
    if file.name == _ADDED:
        yield from ((str(name), number) for name, number in content.items())
        return
    for number, token in _entries(content.get("added_tokens_decoder")).items():
        yield from ((name, int(number)) for name in _names(token))
    for key, value in content.items():
        if key in _LISTS:
            many = value.values() if isinstance(value, dict) else value or []
            yield from ((name, None) for token in many for name in _names(token))
        elif key.endswith("_token") and not isinstance(value, bool):
            yield from ((name, None) for name in _names(value))


def _names(token: Any) -> list[str]:
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) and token else []


def _entries(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _object(file: Path) -> dict[str, Any]:
    """The object of a file; an empty one if the file is missing."""
    try:
        return _entries(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); get it again") from None
