"""Computes log-mel columns of speech, and reconstructs audio from them with Griffin-Lim.

`n * hop` samples produce exactly n columns; column t is centered on the middle of samples
[t·hop, (t+1)·hop), and the audio is padded with zeros at both ends.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.fft

# Settings of Griffin-Lim, chosen by the WER of a small Whisper model on the decoded audio.
_UPSAMPLING = 2  # hop 240 instead of 480, because at least four windows must overlap
_MOMENTUM = 0.99
_PHASE_SEED = 0


@dataclass(frozen=True)
class MelGrid:
    """Resolution of the columns in time and frequency.

    Attributes:
      sample_rate: sample rate in Hz.
      hop: samples from one column to the next.
      window: length of the Hann window and of the Fourier transform, in samples.
      mels: number of bands, evenly spaced on the mel scale from 0 Hz to half the sample rate.
      floor: added to a band's amplitude (1 = a full-scale sine) before the logarithm, so that
        inaudible differences have little effect on the codes.
    """

    sample_rate: int = 24_000
    hop: int = 480
    window: int = 1_024
    mels: int = 80
    floor: float = 1e-4


def log_mel(audio: np.ndarray, grid: MelGrid) -> np.ndarray:
    """Returns the natural logarithm of the band amplitudes, float32 `[samples // hop, mels]`.

    Args:
      audio: float32 `[samples]`; the number of samples must be a multiple of `grid.hop`.
    """
    spectrum = np.abs(_stft(audio, grid.window, grid.hop))
    return np.log(spectrum @ _filters(grid).T + np.float32(grid.floor))


def mel_to_audio(columns: np.ndarray, grid: MelGrid, iterations: int) -> np.ndarray:
    """Returns audio with approximately these log-mel columns, float32 `[len(columns) * hop]`.

    The magnitude spectrogram is the pseudo-inverse of the mel filters times the band amplitudes,
    clipped at 0. Its phase is estimated by the fast Griffin-Lim algorithm (Perraudin, Balazs and
    Søndergaard, 2013) from seeded random phases, so the result is deterministic.

    Args:
      columns: float32 `[columns, mels]`, as returned by `log_mel`.
      grid: resolution of the columns.
      iterations: iterations of Griffin-Lim.
    """
    if len(columns) == 0:
        return np.zeros(0, np.float32)
    bands = np.maximum(np.exp(_upsample(columns, _UPSAMPLING)) - grid.floor, 0)
    amplitude = np.maximum(bands @ _inverse_filters(grid).T, 0).astype(np.float32)
    return _griffin_lim(amplitude, grid.window, grid.hop // _UPSAMPLING, iterations)


def _mel(hertz: np.ndarray) -> np.ndarray:
    """Converts Hz to Slaney's mel scale, linear up to 1 kHz (Auditory Toolbox, 1998)."""
    rise = 27 / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + rise * np.log(np.maximum(hertz, 1) / 1000))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@functools.lru_cache(maxsize=8)
def _filters(grid: MelGrid) -> np.ndarray:
    """Returns triangular filters that each sum to 1, float32 `[mels, window // 2 + 1]`."""
    highest = _mel(np.array(grid.sample_rate / 2))
    edges = _hertz(np.linspace(0, highest, grid.mels + 2))[:, None]
    bins = np.fft.rfftfreq(grid.window, 1 / grid.sample_rate)[None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    # A band narrower than a bin would be empty, so the bin nearest to its center is used.
    nearest = np.abs(bins - edges[1:-1]).argmin(axis=1)
    empty = filters.sum(axis=1) == 0
    filters[empty, nearest[empty]] = 1
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _inverse_filters(grid: MelGrid) -> np.ndarray:
    return np.linalg.pinv(_filters(grid)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _hann(window: int) -> np.ndarray:
    """Returns a periodic Hann window, scaled so that a full-scale sine has amplitude 1 in a bin."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return (hann / (hann.sum() / 2)).astype(np.float32)


def _stft(audio: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Returns the STFT, complex64 `[samples // hop, window // 2 + 1]`."""
    columns, before = len(audio) // hop, (window - hop) // 2
    padded = np.pad(audio, (before, window - hop - before))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[: columns * hop : hop]
    return scipy.fft.rfft(pieces * _hann(window), axis=-1)


def _overlap_add(pieces: np.ndarray, hop: int) -> np.ndarray:
    """Sums pieces `[columns, window]` that are `hop` apart; returns `[columns * hop]`."""
    columns, window = pieces.shape
    layers = -(-window // hop)
    pieces = np.pad(pieces, ((0, 0), (0, layers * hop - window))).reshape(columns, layers, hop)
    total = np.zeros((columns + layers - 1, hop), np.float32)
    for layer in range(layers):
        total[layer : layer + columns] += pieces[:, layer]
    before = (window - hop) // 2
    return total.reshape(-1)[before : before + columns * hop]


def _griffin_lim(amplitude: np.ndarray, window: int, hop: int, iterations: int) -> np.ndarray:
    """Returns audio whose STFT has approximately this magnitude, float32 `[columns * hop]`."""
    columns = len(amplitude)
    hann = _hann(window)
    weight = _overlap_add(np.broadcast_to(hann**2, (columns, window)), hop)
    weight = np.maximum(weight, weight.max() * np.float32(1e-3))

    def inverse(spectrum: np.ndarray) -> np.ndarray:
        return _overlap_add(scipy.fft.irfft(spectrum, window, axis=-1) * hann, hop) / weight

    turns = np.random.default_rng(_PHASE_SEED).random(amplitude.shape, np.float32)
    phase = np.exp(2j * np.pi * turns).astype(np.complex64)
    previous = np.zeros_like(phase)
    for _ in range(iterations):
        consistent = _stft(inverse(amplitude * phase), window, hop)
        step = consistent - np.float32(_MOMENTUM / (1 + _MOMENTUM)) * previous
        phase = step / (np.abs(step) + np.float32(1e-8))
        previous = consistent
    return inverse(amplitude * phase)


def _upsample(columns: np.ndarray, factor: int) -> np.ndarray:
    """Returns `[columns * factor, mels]` by linear interpolation in time, constant at the ends."""
    position = (np.arange(len(columns) * factor) + 0.5) / factor - 0.5
    left = np.clip(np.floor(position).astype(int), 0, len(columns) - 1)
    right = np.minimum(left + 1, len(columns) - 1)
    share = np.clip(position - left, 0, 1).astype(np.float32)[:, None]
    return columns[left] * (1 - share) + columns[right] * share
