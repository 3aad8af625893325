"""Fixtures of the pipeline tests."""

from collections.abc import Iterator

import pytest
from pipeline_toys import ToyCodec

from tokenize_pipeline import encoding


@pytest.fixture
def toy_codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyCodec]:
    """Makes every codec spec open the toy codec in this process."""
    codec = ToyCodec()
    monkeypatch.setattr(encoding, "load_codec", lambda spec: codec)
    encoding.cached_codec.cache_clear()
    yield codec
    encoding.cached_codec.cache_clear()
