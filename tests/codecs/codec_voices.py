"""Audio to encode that resembles syllables, and a small codec that is fitted on it."""

import numpy as np

from soda_jax.codecs.mel import MelCodec, MelSettings

SMALL = MelSettings(codebook_sizes=(16, 12, 8), components=24, griffin_lim_iterations=4)


def syllables(seconds: float, seed: int) -> np.ndarray:
    """Returns float32 mono at 24 kHz: harmonics of changing pitch, with pauses."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 24_000)) / 24_000
    pitch = 120 + 60 * np.interp(
        time, np.arange(0, seconds + 1, 0.1), rng.random(len(np.arange(0, seconds + 1, 0.1)))
    )
    phase = 2 * np.pi * np.cumsum(pitch) / 24_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    loudness = np.maximum(0, np.sin(2 * np.pi * 3 * time + rng.random()))
    return (0.1 * voice * loudness + 0.001 * rng.standard_normal(len(time))).astype(np.float32)


def small_codec(seed: int = 0) -> MelCodec:
    """Returns a codec of three codebooks with 16, 12 and 8 entries."""
    return MelCodec.fit([syllables(4, 10 + i) for i in range(3)], SMALL, seed=seed)
