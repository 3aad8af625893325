"""Writes a small Nemotron-CC v1: quality=…/kind=…/kind2=…/CRAWL-part-NUMBER.jsonl.zstd."""

import json
from collections.abc import Sequence
from pathlib import Path

import zstandard


def write_corpus(folder: Path, pages: Sequence[tuple[str, str]], *, frames: int = 2) -> Path:
    """Writes (WARC record id, text) pairs to one file of `frames` Zstandard frames; returns the file."""
    rows = [
        {"warc_record_id": record, "url": "https://example.com/", "language": "eng", "text": text}
        for record, text in pages
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    size = -(-len(lines) // frames)
    parts = ["".join(lines[at : at + size]).encode() for at in range(0, len(lines), size)]
    path = folder / "quality=high/kind=actual/kind2=actual/CC-MAIN-2013-20-part-00016.jsonl.zstd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(zstandard.compress, parts)))
    return path
