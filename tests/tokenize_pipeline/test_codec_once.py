"""A process loads a codec once for all its threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline_toys import ToyCodec

from tokenize_pipeline import encoding


def test_threads_share_one_codec(monkeypatch):
    loaded = []
    together = threading.Barrier(4)

    def load(spec: str) -> ToyCodec:
        loaded.append(spec)
        time.sleep(0.05)  # the other threads call it meanwhile
        return ToyCodec()

    def ask(spec: str) -> object:
        together.wait()
        return encoding.load_codec_once(spec)

    monkeypatch.setattr(encoding, "load_codec", load)
    encoding.cached_codec.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        first = set(pool.map(ask, ["one"] * 4))
    assert len(first) == 1 and loaded == ["one"]
    assert encoding.load_codec_once("two") not in first
    assert encoding.load_codec_once("two") is encoding.load_codec_once("two")
    encoding.cached_codec.cache_clear()
    encoding.load_codec_once("two")
    encoding.cached_codec.cache_clear()
    assert loaded == ["one", "two", "two"]
