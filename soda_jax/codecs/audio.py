"""Sound files in and out: any format and rate that libsndfile reads, mono float32 inside."""

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from soda_jax.codecs.interface import Codec
from soda_jax.errors import UserError
from soda_jax.files import write_atomic

if TYPE_CHECKING:
    import soundfile

Reason = Literal[
    "missing", "truncated", "empty", "not_finite", "silent", "undecodable", "end_before_start"
]
_SILENCE = 1e-4  # peak amplitude, −80 dB of full scale
_END_SLACK = 0.5  # seconds that a caption may reach beyond its file: players round up
_RATES = range(1_000, 1_000_001)  # Hz; a header outside it is damaged, and resampling would explode
_LONGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes: head, table of segments, segments
_UNKNOWN_SIZE = 0x7FFF_0000  # writers to a pipe leave 0 or a size near 2^31 or 2^32 in the header


class AudioError(UserError):
    """A sound that cannot be used.

    Attributes:
      reason: one word for counting: `missing`, `truncated`, `empty`, `not_finite`, `silent`,
        `undecodable` or `end_before_start`.
    """

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


def read_audio(
    source: str | os.PathLike[str] | bytes,
    sample_rate: int,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Reads a sound file, or a stretch of it, as float32 mono `[samples]` at `sample_rate` Hz.

    Channels are averaged, the rate is converted by soxr (high quality). Only the stretch is read where
    the format can seek.

    Args:
      source: path, or content, of any format that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, …).
      sample_rate: Hz, of the result.
      start: first second of the stretch; None is the beginning.
      end: last second of the stretch; None is the end of the file, as is up to 0.5 s beyond it.
      name: what messages call the sound; None for its path.

    Raises:
      AudioError: with its reason, if there is no such file, it cannot be decoded, holds fewer samples
        than its header or the stretch asks for, holds none, or holds NaN, infinity or only silence.
    """
    start = 0.0 if start is None else start
    name = name or ("sound in memory" if isinstance(source, bytes) else os.fspath(source))
    if not math.isfinite(start) or start < 0 or not (end is None or end > start):
        raise AudioError(
            "end_before_start", f"{name}: from {start:g} s to {end} s is no stretch of time"
        )
    samples, rate = _read_samples(source, name, start, end)
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", f"{name}: it holds NaN or infinite samples")
    mono = samples.mean(axis=1, dtype=np.float32)
    if np.abs(mono).max() < _SILENCE:
        raise AudioError("silent", f"{name}: no sample is above −80 dB of full scale")
    resampled = _resample(mono, rate, sample_rate)
    if len(resampled) == 0:
        raise AudioError("empty", f"{name}: it lasts less than one sample at {sample_rate} Hz")
    return resampled


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int) -> None:
    """Writes float mono `[samples]` as a 16-bit WAV, clipped to [-1, 1]; the file is whole or absent."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1, 1), sample_rate, format="WAV", subtype="PCM_16")
    write_atomic(Path(path), buffer.getvalue())


def piece_samples(codec: Codec, max_seconds: float) -> int:
    """Samples of the longest piece of whole frames that lasts at most `max_seconds`."""
    return max(1, math.floor(max_seconds * codec.frame_rate)) * codec.samples_per_frame


def encode_long(codec: Codec, audio: np.ndarray, max_seconds: float = 60) -> np.ndarray:
    """Codes of a clip of any length, encoded in pieces (SODA: chunks over 60 s, in pieces of 60 s).

    Args:
      codec: any codec.
      audio: float32 mono `[samples]` at the codec's rate.
      max_seconds: longest piece; all pieces but the last are whole frames long.

    Returns:
      uint16 `[ceil(samples / samples_per_frame), codebooks]`.
    """
    piece = piece_samples(codec, max_seconds)
    starts = range(0, max(len(audio), 1), piece)
    # One by one: the memory that a codec takes grows with its batch.
    return np.concatenate([codec.encode([audio[at : at + piece]])[0] for at in starts])


def sound_seconds(source: str | os.PathLike[str] | bytes) -> float | None:
    """Seconds of a sound by its header; None if there is none that libsndfile reads."""
    import soundfile

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return soundfile.info(file).duration
    except (soundfile.SoundFileError, RuntimeError, ZeroDivisionError):
        return None


def _read_samples(
    source: str | os.PathLike[str] | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """(float32 `[samples, channels]` between two times, their rate in Hz)."""
    import soundfile

    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise AudioError("missing", f"{name}: there is no such file")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as content:
            _check_container(content, name)
    except OSError as error:  # no permission, a failing disk: one file must not end a whole job
        cause = error.strerror or type(error).__name__
        raise AudioError("undecodable", f"{name}: the file cannot be read ({cause})") from None
    try:
        sound = io.BytesIO(source) if isinstance(source, bytes) else source
        with soundfile.SoundFile(sound) as file:
            return _read_stretch(file, name, start, end), file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        cause = str(error).split(": ", 1)[-1]
        raise AudioError("undecodable", f"{name}: libsndfile cannot read it ({cause})") from None


def _read_stretch(
    file: "soundfile.SoundFile", name: str, start: float, end: float | None
) -> np.ndarray:
    """float32 `[samples, channels]` between two times of an open file."""
    rate, length = file.samplerate, file.frames
    if rate not in _RATES:
        raise AudioError("undecodable", f"{name}: its header claims {rate} samples a second")
    if length <= 0:
        raise AudioError("empty", f"{name}: it holds no samples")
    if (first := round(start * rate)) >= length or (
        end is not None and end > length / rate + _END_SLACK
    ):
        raise AudioError(
            "truncated",
            f"{name}: it lasts {length / rate:.2f} s, so {start:g} s to "
            f"{'its end' if end is None else f'{end:g} s'} is not all there",
        )
    last = length if end is None else min(length, round(end * rate))
    if last <= first:
        raise AudioError("empty", f"{name}: {start:g} s to {end:g} s is less than one sample")
    if first:
        file.seek(first)
    samples = file.read(last - first, dtype="float32", always_2d=True)
    if len(samples) < last - first:
        raise AudioError(
            "truncated", f"{name}: it ends after {len(samples)} of {last - first} samples"
        )
    return samples


def _check_container(file: BinaryIO, name: str) -> None:
    """Raises `empty` if there are no bytes, `truncated` if some are missing at the end.

    That is a WAV or AIFF shorter than its header says, or an Ogg that ends in a page: libsndfile reads
    what is left of such a file and says nothing.
    """
    length = file.seek(0, os.SEEK_END)
    if length == 0:
        raise AudioError("empty", f"{name}: the file has no bytes")
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        file.seek(max(0, length - _LONGEST_OGG_PAGE))
        _check_last_page(name, file.read())
        return
    kind, form = head[:4], head[8:12]
    if kind == b"RIFF" and form == b"WAVE":
        size = int.from_bytes(head[4:8], "little")
    elif kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        size = int.from_bytes(head[4:8], "big")
    else:
        return
    missing = size + 8 - length
    # One byte may be the padding of an odd chunk, which some writers count and do not write.
    if missing > 1 and size < _UNKNOWN_SIZE:
        raise AudioError("truncated", f"{name}: the last {missing} bytes of the file are missing")


def _check_last_page(name: str, tail: bytes) -> None:
    """Raises `truncated` if the last page of an Ogg is not whole; `tail` is the end of the file.

    The mark of the last page is not asked for: recordings of live streams have none.
    """
    at = tail.rfind(b"OggS")
    if at < 0:
        return  # something else stands behind the last page, so the page is whole
    page = tail[at:]
    # Byte 26 is the number of segments; the length of each follows, then the segments.
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise AudioError("truncated", f"{name}: the file ends in the middle of an Ogg page")


def _resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return mono
    import soxr

    return soxr.resample(mono, rate, sample_rate).astype(np.float32, copy=False)
