"""Synthetic speech for the small corpora: short commands and digits by hibari-tts, made once per session."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from pipeline_toys import RATE

from tokenize_pipeline.synthetic import synthesize

_COUNT = 12


def spoken(count: int, first: int = 0) -> list[np.ndarray]:
    """Returns clips `first` to `first + count` of twelve, float32 mono samples at `RATE`; skips without hibari-tts.

    Their lengths are multiples of 0.01 s, and their samples are 16-bit values.
    """
    pytest.importorskip("hibari")
    assert first + count <= _COUNT
    return list(_clips()[first : first + count])


@functools.cache
def _clips() -> tuple[np.ndarray, ...]:
    with tempfile.TemporaryDirectory() as folder:
        synthesize(folder, "demo", _COUNT, 0)
        return tuple(_read(path) for path in sorted(Path(folder, "audio").glob("*.wav")))


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    clip = soxr.resample(samples, rate, RATE)
    clip = clip[: len(clip) - len(clip) % (RATE // 100)]
    # Adding 0.0 removes the sign of zeros, which a sound file does not store.
    return (np.round(clip * 32768).clip(-32768, 32767) / 32768 + 0.0).astype(np.float32)
