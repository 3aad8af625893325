"""Writes a small FineWeb: data/CRAWL/000_00000.parquet."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet


def write_corpus(folder: Path, pages: Sequence[tuple[str, str]], *, group: int = 100) -> Path:
    """Writes (id, text) pairs in row groups of `group` rows; returns the file."""
    count = len(pages)
    columns = {
        "text": [text for _, text in pages],
        "id": [name for name, _ in pages],
        "dump": ["CC-MAIN-2024-10"] * count,
        "url": ["https://example.com/"] * count,
        "date": ["2024-02-21T00:00:00Z"] * count,
        "file_path": ["s3://commoncrawl/x.warc.gz"] * count,
        "language": ["en"] * count,
        "language_score": [0.97] * count,
        "token_count": [len(text.split()) for _, text in pages],
    }
    path = folder / "data/CC-MAIN-2024-10/000_00000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path
