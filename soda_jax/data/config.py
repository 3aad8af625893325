"""Resolves the settings of a source: views, excluded documents and masked records."""

from soda_jax.data.format.manifest import Manifest
from soda_jax.data.split import SplitOptions
from soda_jax.data.storage.remote import read_bytes
from soda_jax.errors import UserError
from soda_jax.schema import SourceConfig
from soda_jax.tokens.documents import ORDERS, View


def views(source: SourceConfig, manifest: Manifest, name: str) -> tuple[View, ...]:
    """Returns the views of a source; only S+A+T has two orders.

    Raises:
      UserError: if the composition contains audio and the data set does not.
    """
    composition = source.composition
    if manifest.kind == "text" and composition != "text":
        raise UserError(
            f"data.sources.{name}.composition is {composition!r}, but {source.path} contains only "
            "text; set it to 'text'"
        )
    if composition != "S+A+T":
        orders: tuple[str, ...] = (ORDERS[0],)
    else:
        orders = ORDERS if source.order == "both" else (source.order,)
    return tuple(View(order, composition, source.codebooks) for order in orders)


def split_options(source: SourceConfig, name: str, on_corrupt_record: str) -> SplitOptions:
    """Reads the files given by `exclude_documents` and `mask_records`.

    Raises:
      UserError: if a file cannot be read or a line is malformed.
    """
    masked = set()
    for line in _lines(source.mask_records, f"data.sources.{name}.mask_records"):
        if line.startswith("#"):  # comments that `soda tokenize --verify` writes
            continue
        file, _, number = line.rpartition(" ")
        if not number.isdecimal() or not file:
            raise UserError(
                f"{source.mask_records}: {line!r} is invalid; write 'SHARD RECORD-NUMBER'"
            )
        masked.add((file.strip(), int(number)))
    excluded = _lines(source.exclude_documents, f"data.sources.{name}.exclude_documents")
    return SplitOptions(frozenset(excluded), frozenset(masked), on_corrupt_record)


def _lines(path: str, key: str) -> list[str]:
    if not path:
        return []
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}: cannot read {path}: {error}; write one entry per line in UTF-8"
        ) from None
    if "\0" in text:  # in UTF-16 no id would match, and nothing would be excluded
        raise UserError(
            f"{key}: {path} contains NUL, as UTF-16 does; write one entry per line in UTF-8"
        )
    # Not `splitlines`: an id may contain characters that Unicode counts as line ends.
    return [line.strip() for line in text.split("\n") if line.strip()]
