"""Reads sound files of any format and rate as mono float32, writes WAV, and encodes long clips."""

import contextlib
import functools
import io
import math
import os
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from soda_jax.codecs.containers import (
    Part,
    PartFile,
    Reason,
    SoundError,
    find_parts,
    is_checked,
)
from soda_jax.codecs.interface import Codec
from soda_jax.errors import UserError
from soda_jax.files import write_atomic

if TYPE_CHECKING:
    import soundfile

Source = str | os.PathLike[str] | bytes
_SILENCE = 1e-4  # peak amplitude, −80 dB of full scale
# Peak amplitude, 24 dB above full scale. Float mixes and lossy decoders exceed full scale by a few
# dB; samples that were not rescaled from an integer type exceed it by at least 40 dB.
_LOUDEST = 16.0
_CANCELED = 0.01  # peak of the mean of the channels relative to the loudest channel, −40 dB
_END_SLACK = 0.5  # seconds by which an end time may exceed the length, because players round up
_RATES = range(1_000, 1_000_001)  # Hz; a header with a rate outside this range counts as damaged
# Samples decoded before the requested range of an MP3. A frame may use up to 511 bytes of data in
# earlier frames (255 in MPEG 2, which at 8 kbit/s is 85 frames with 3 bytes each). Without these
# bytes, the frame is decoded as silence.
_MPEG_LEAD = 1 << 16
_BUFFER = 1 << 16  # bytes
_LARGE = 1 << 20  # bytes; the parts of in-memory sounds of at least this size are cached


class AudioError(UserError):
    """Raised for a sound that cannot be used.

    Attributes:
      reason: category under which errors are counted: `missing`, `truncated`, `empty`,
        `not_finite`, `wrong_scale`, `silent`, `channels_cancel`, `undecodable` or
        `end_before_start`.
    """

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


def read_audio(
    source: Source,
    sample_rate: int,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Reads a sound file, or a range of it, as float32 mono `[samples]` at `sample_rate` Hz.

    Channels are averaged, and the rate is converted by soxr (high quality). If the format supports
    seeking, only the range is read. A file is decoded to its true end, even if the length in its
    header is wrong or it consists of several streams.

    Args:
      source: path or content, in any format that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, …).
      sample_rate: sample rate of the result in Hz.
      start: start of the range in seconds; None is the start of the file.
      end: end of the range in seconds; None, or a time up to 0.5 s after the end of the file, reads
        to the end.
      name: name of the sound in error messages; None uses the path.

    Raises:
      AudioError: if the range is not valid; if the file does not exist or cannot be decoded; if it
        is shorter than its header or the range requires; if it has no samples, is silent, or
        contains NaN, infinity or samples far above full scale; if its channels cancel each other.
    """
    start = 0.0 if start is None else start
    name = name or ("sound in memory" if isinstance(source, bytes) else os.fspath(source))
    with _named(name):
        clips, rates, peak, mono_peak = [], [], 0.0, 0.0
        for samples, rate in _read_range(source, start, end):
            peak = max(_peak(samples), peak)  # `max` returns NaN only if it is the first argument
            if not math.isfinite(peak):
                raise SoundError("not_finite", "it contains NaN or infinite samples")
            mono = _mix(samples)
            mono_peak = max(mono_peak, _peak(mono) if samples.shape[1] > 1 else peak)
            clips.append(mono)
            rates.append(rate)
        _check_level(peak, mono_peak)
        if len(set(rates)) == 1 and len(clips) > 1:
            clips, rates = [np.concatenate(clips)], rates[:1]
        resampled = [
            _resample(mono, rate, sample_rate) for mono, rate in zip(clips, rates, strict=True)
        ]
        result = resampled[0] if len(resampled) == 1 else np.concatenate(resampled)
        if len(result) == 0:
            raise SoundError("empty", f"it lasts less than one sample at {sample_rate} Hz")
        return result


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int) -> None:
    """Atomically writes float mono `[samples]`, clipped to [-1, 1], as a 16-bit WAV."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1, 1), sample_rate, format="WAV", subtype="PCM_16")
    write_atomic(Path(path), buffer.getvalue())


def pcm16(audio: np.ndarray) -> bytes:
    """Returns float mono `[samples]`, clipped to [-1, 1], as little-endian 16-bit integers."""
    scaled = np.round(np.clip(np.asarray(audio, np.float64), -1, 1) * 32767)
    return scaled.astype("<i2").tobytes()


@contextlib.contextmanager
def streamed_wav(
    path: str | os.PathLike[str], sample_rate: int
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends float mono `[samples]` to a 16-bit WAV file.

    The file is `PATH.partial` while it grows and has `path` at the end; after an exception it is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        with wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            # writeframes updates the length in the header, so the file can be played while it grows.
            yield lambda audio: file.writeframes(pcm16(audio))
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def piece_samples(codec: Codec, max_seconds: float) -> int:
    """Returns the number of samples in the whole frames of `max_seconds` (at least one frame)."""
    return max(1, math.floor(max_seconds * codec.frame_rate)) * codec.samples_per_frame


def encode_long(codec: Codec, audio: np.ndarray, max_seconds: float = 60) -> np.ndarray:
    """Encodes a clip of any length in pieces (SODA uses pieces of 60 s).

    Args:
      codec: any codec.
      audio: float32 mono `[samples]` at the codec's rate.
      max_seconds: maximum length of a piece; every piece except the last consists of whole frames.

    Returns:
      uint16 `[ceil(samples / samples_per_frame), codebooks]`.
    """
    piece = piece_samples(codec, max_seconds)
    starts = range(0, max(len(audio), 1), piece)
    # One piece per call, because the memory that a codec needs grows with the batch.
    return np.concatenate([codec.encode([audio[at : at + piece]])[0] for at in starts])


def sound_seconds(source: Source) -> float | None:
    """Returns the length of a sound in seconds without decoding it; None if it is unknown."""
    try:
        with _named(""), contextlib.ExitStack() as stack:
            return sum(length / file.samplerate for file, length in _open(source, stack))
    except (AudioError, ZeroDivisionError):
        return None


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Converts `SoundError`, OSError and libsndfile errors to `AudioError`; adds `name`."""
    import soundfile

    try:
        yield
    except SoundError as error:
        raise AudioError(error.reason, f"{name}: {error}") from None
    except OSError as error:  # for example from a failing disk; one file must not end a job
        cause = error.strerror or type(error).__name__
        raise AudioError("undecodable", f"{name}: the file cannot be read ({cause})") from None
    except (soundfile.SoundFileError, RuntimeError) as error:
        cause = str(error).split(": ", 1)[-1]
        raise AudioError("undecodable", f"{name}: libsndfile cannot read it ({cause})") from None


def _read_range(
    source: Source, start: float, end: float | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (float32 `[samples, channels]`, rate in Hz) for each part that overlaps the range."""
    if not math.isfinite(start) or start < 0 or not (end is None or end > start):
        raise SoundError("end_before_start", f"{start:g} s to {end} s is not a valid time range")
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise SoundError("missing", "there is no such file")
    with contextlib.ExitStack() as stack:
        files = list(_open(source, stack))
        for file, _ in files:
            if file.samplerate not in _RATES:
                raise SoundError(
                    "undecodable", f"its header has a sample rate of {file.samplerate} Hz"
                )
        total = sum(length / file.samplerate for file, length in files)
        if total <= 0:
            raise SoundError("empty", "it has no samples")
        if (end is not None and end > total + _END_SLACK) or start >= total:
            until = "its end" if end is None else f"{end:g} s"
            raise SoundError(
                "truncated", f"it lasts {total:.2f} s and does not contain {start:g} s to {until}"
            )
        elapsed, found = 0.0, False  # `elapsed`: seconds in the previous parts
        for file, length in files:
            rate = file.samplerate
            first = max(0, round((start - elapsed) * rate))
            last = length if end is None else min(length, round((end - elapsed) * rate))
            elapsed += length / rate
            if first < last:
                found = True
                yield _read(file, first, last), rate
    if not found:
        raise SoundError("empty", f"{start:g} s to {end} s is less than one sample")


def _read(file: "soundfile.SoundFile", first: int, last: int) -> np.ndarray:
    """Returns the samples in `[first, last)` of an open file, float32 `[samples, channels]`."""
    lead = min(first, _MPEG_LEAD) if file.subtype.startswith("MPEG") else 0
    if not file.seekable():  # for example GSM 6.10 and G.721; decoded from the start
        lead = first
    elif first:
        file.seek(first - lead)
    samples = file.read(last - first + lead, dtype="float32", always_2d=True)[lead:]
    if len(samples) < last - first:
        raise SoundError("truncated", f"it ends after {len(samples)} of {last - first} samples")
    return samples


def _open(
    source: Source, stack: contextlib.ExitStack
) -> Iterator[tuple["soundfile.SoundFile", int]]:
    """Yields (open file, samples per channel) of each part of a sound; `stack` closes the files."""
    import soundfile

    parts, size = _parts(source)
    if not parts or parts == (Part(0, size),):
        whole = io.BytesIO(source) if isinstance(source, bytes) else source
        file = stack.enter_context(soundfile.SoundFile(whole))
        if not parts and not is_checked(file.format):
            raise SoundError(
                "undecodable",
                f"the length of this {file.format} file cannot be checked: convert it to WAV or FLAC",
            )
        yield file, file.frames
        return
    content = stack.enter_context(_binary(source))
    for part in parts:
        # Buffered, because libmpg123 reads each frame with two small reads.
        buffered = io.BufferedReader(PartFile(content, part), _BUFFER)
        file = stack.enter_context(soundfile.SoundFile(buffered))
        if part.samples is not None and part.samples > file.frames:
            raise SoundError(
                "undecodable", f"libsndfile reads {file.frames} of its {part.samples} samples"
            )
        yield file, file.frames if part.samples is None else part.samples


def _binary(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _parts(source: Source) -> tuple[tuple[Part, ...], int]:
    """Returns (parts of a sound file, its size in bytes).

    The parts are cached, because several ranges of a file are often read one after the other.
    """
    if isinstance(source, bytes):
        find = _parts_of_bytes if len(source) >= _LARGE else _parts_of_bytes.__wrapped__
        return find(source), len(source)
    status = os.stat(source)
    path = os.fspath(source)
    return _parts_of_path(path, status.st_size, status.st_mtime_ns), status.st_size


@functools.lru_cache(maxsize=1)
def _parts_of_bytes(content: bytes) -> tuple[Part, ...]:
    return tuple(find_parts(io.BytesIO(content)))


@functools.lru_cache(maxsize=4096)
def _parts_of_path(path: str, size: int, modified: int) -> tuple[Part, ...]:
    # The size and modification time are in the key, so that a changed file is read again.
    with open(path, "rb") as file:
        return tuple(find_parts(file))


def _peak(samples: np.ndarray) -> float:
    """Returns the largest absolute value; NaN if a sample is NaN."""
    return max(float(samples.max()), -float(samples.min()))


def _mix(samples: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels, float32 `[samples]`; bit-equal to `mean(axis=1)`."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    if samples.shape[1] == 2:
        return (samples[:, 0] + samples[:, 1]) / np.float32(2)
    return samples.mean(axis=1, dtype=np.float32)


def _check_level(peak: float, mono_peak: float) -> None:
    """Raises SoundError if the peak before or after mixing shows that the sound is unusable."""
    if peak > _LOUDEST:
        raise SoundError(
            "wrong_scale",
            f"its loudest sample is {peak:g}, full scale is 1: divide the samples by the range of the "
            "integer type that they were converted from",
        )
    if peak >= _SILENCE and mono_peak < _CANCELED * peak:
        raise SoundError(
            "channels_cancel",
            f"its channels cancel each other (peak {peak:.3g}, peak of their mean {mono_peak:.3g}): "
            "invert one of them",
        )
    if mono_peak < _SILENCE:
        raise SoundError("silent", "no sample is above −80 dB of full scale")


def _resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return mono
    import soxr

    return soxr.resample(mono, rate, sample_rate).astype(np.float32, copy=False)
