"""Prints and writes the results of `soda inspect --contamination`."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from soda_jax.errors import UserError

if TYPE_CHECKING:
    from soda_jax.data.checks.contamination import Contamination
    from soda_jax.data.checks.ngram_search import Found

_SHOWN = 50  # maximum printed utterances; the report contains all matches
_WIDTH = 60  # printed characters of a text


def run(args: argparse.Namespace) -> int:
    """Compares two data sets; returns 1 if training documents should be excluded, else 0."""
    from soda_jax.data.checks.contamination import find_contamination
    from soda_jax.files import write_atomic

    train, evaluation = args.contamination
    found = find_contamination(
        train, evaluation, ngram=args.ngram, share=args.share, generation=args.generation
    )
    print("\n".join(_table(train, evaluation, found)))
    if args.report:
        rows = [dataclasses.asdict(match) for match in found.matches()]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(args.report, "".join(lines))
    if args.output:
        write_atomic(args.output, _exclusions(found, Path(args.output)))
    return 1 if found.excluded else 0


def _exclusions(found: "Contamination", path: Path) -> str:
    """Returns the `exclude_documents` file: one document id per line."""
    for name in found.excluded:
        if name.strip() != name or len(name.splitlines()) != 1:
            raise UserError(
                f"{path}: document id {name!r} has a line break, has surrounding white space or is "
                "empty; give the document another id"
            )
    return "".join(f"{name}\n" for name in found.excluded)


def _table(train: str, evaluation: str, found: "Contamination") -> Iterator[str]:
    long, short, matches = found.long(), found.short(), found.matches()
    spread = [f for f in long if f.share < found.share <= f.share_anywhere]
    alike = sum(f.words >= found.ngram for f in matches)
    wordless = len(found.utterances) - len(long) - len(short)
    rest = f", {wordless:,} without words" if wordless else ""
    least = f"at least {found.share:.0%} of their {found.ngram}-grams"
    yield (
        f"{evaluation} in {train}: {found.train_documents:,} documents, "
        f"{found.train_utterances:,} utterances of training data"
    )
    yield (
        f"  {len(found.utterances):,} utterances: {len(long):,} of {found.ngram} words or more, "
        f"{len(short):,} shorter{rest}"
    )
    rows = [
        ("documents with the same id", f"{len(found.same_ids):,}"),
        (f"utterances with {least} in one document", _of(alike, len(long))),
        (f"utterances with {least} in several documents", _of(len(spread), len(long))),
        ("shorter utterances that match as a whole", _of(len(matches) - alike, len(short))),
        ("training documents to exclude", f"{len(found.excluded):,}"),
        ("damaged records, skipped", f"{found.damaged_records:,}"),
    ]
    width = max(len(label) for label, _ in rows)
    yield from (f"  {label:<{width}}  {value}" for label, value in rows)
    if matches:
        yield "share  utterance | in the training data | text"
        yield from map(_line, matches[:_SHOWN])
    if len(matches) > _SHOWN:
        yield f"… {len(matches) - _SHOWN:,} more; --report=FILE.jsonl writes them all"


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}" + (f" ({count / total:.1%})" if total else "")


def _line(found: "Found") -> str:
    text = found.text if len(found.text) <= _WIDTH else found.text[: _WIDTH - 1] + "…"
    where = f"{found.train_document} [{found.train_utterance}]"
    more = found.train_documents - 1
    others = f" and {more:,} more" if more else ""
    return f"{found.share:5.2f}  {found.document} [{found.utterance}] | {where}{others} | {text!r}"
