"""Sound files with a wrong length in the header are decoded to their end or rejected with a reason."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile
from codec_voices import syllables

from soda_jax.codecs.audio import AudioError, read_audio, sound_seconds
from soda_jax.codecs.containers.mpeg import _parse

RATE = 24_000
TAG = b"TAG" + bytes(125)
APE = (
    b"APETAGEX"
    + struct.pack("<IIIIQ", 2000, 82, 1, 0xA000_0000, 0)
    + bytes(range(50))
    + b"APETAGEX"
) + struct.pack("<IIIIQ", 2000, 82, 1, 0x8000_0000, 0)
ID3 = b"ID3\x04\0\0\0\0\x02\x10" + bytes(2 * 128 + 16)


def encoded(audio: np.ndarray, format: str, subtype: str | None = None, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=format, subtype=subtype, **options)
    return buffer.getvalue()


def mp3(audio: np.ndarray, mode="VARIABLE", rate=RATE) -> bytes:
    return encoded(audio, "MP3", rate=rate, bitrate_mode=mode, compression_level=0.5)


def frames(content: bytes) -> list[int]:
    """Returns the offsets of the frames of an MP3 without tags, and its length in bytes."""
    offsets = [0]
    while offsets[-1] < len(content):
        offsets.append(offsets[-1] + _parse(content[offsets[-1] : offsets[-1] + 4]).length)
    return offsets


def without_header(content: bytes) -> bytes:
    return content[frames(content)[1] :]


def loud_then_quiet(seconds: float, quiet_first=False) -> np.ndarray:
    audio = syllables(seconds, 1)
    third = len(audio) // 3
    audio[:third] *= 0.01 if quiet_first else 3
    audio[third:] *= 3 if quiet_first else 0.01
    return audio


def patched(content: bytes, *fields: tuple[int, bytes]) -> bytes:
    result = bytearray(content)
    for at, value in fields:
        result[at : at + len(value)] = value
    return bytes(result)


def seconds_of(content: bytes, tmp_path=None) -> float:
    """Returns the seconds of the samples; checks that bytes and file give the same samples."""
    audio = read_audio(content, RATE)
    if tmp_path is not None:
        path = tmp_path / "sound"
        path.write_bytes(content)
        np.testing.assert_array_equal(read_audio(path, RATE), audio)
    assert sound_seconds(content) == pytest.approx(len(audio) / RATE, abs=1e-3)
    return len(audio) / RATE


def reason(content: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(content, RATE)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE", "CONSTANT"])
@pytest.mark.parametrize("quiet_first", [False, True])
def test_an_mp3_without_a_length_header_is_decoded_to_its_end(tmp_path, mode, quiet_first):
    audio = loud_then_quiet(6, quiet_first)
    content = mp3(audio, mode)
    cut = without_header(content)
    assert seconds_of(cut, tmp_path) == (len(frames(cut)) - 1) * 576 / RATE
    whole, delay = read_audio(content, RATE), 576 + 529  # of LAME's encoder and the decoder
    np.testing.assert_allclose(read_audio(cut, RATE)[delay:][: len(whole)], whole, atol=1e-5)
    part = read_audio(cut, RATE, 4.0, 5.5)
    np.testing.assert_allclose(part, read_audio(cut, RATE)[96_000:132_000], atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_every_version_without_a_header_has_all_its_samples(rate, channels):
    audio = np.random.default_rng(0).normal(0, 0.1, (rate * 2, channels))
    cut = without_header(mp3(audio, rate=rate))
    samples = (len(frames(cut)) - 1) * (1152 if rate > 24_000 else 576)
    assert len(read_audio(cut, rate)) == samples


def test_a_range_of_a_headerless_mp3_file_larger_than_a_buffer(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(without_header(mp3(loud_then_quiet(60))))
    whole = read_audio(path, RATE)
    assert len(whole) / RATE == pytest.approx(60, abs=0.1)
    np.testing.assert_allclose(
        read_audio(path, RATE, 50, 55), whole[1_200_000:1_320_000], atol=1e-6
    )


def test_concatenated_mp3s_are_decoded_one_after_the_other(tmp_path):
    one, two = mp3(syllables(2, 1)), mp3(syllables(3, 2))
    joined = np.concatenate([read_audio(one, RATE), read_audio(two, RATE)])
    for content in (one + two, ID3 + one + TAG + ID3 + two + APE, one + APE + TAG + two):
        assert seconds_of(content, tmp_path) == 5
        np.testing.assert_array_equal(read_audio(content, RATE), joined)
    np.testing.assert_allclose(
        read_audio(one + two, RATE, 1.5, 3.5), joined[36_000:84_000], atol=1e-6
    )
    for content in (one + without_header(two), without_header(one) + two):
        assert 5 < seconds_of(content, tmp_path) < 5.15


def test_concatenated_files_of_different_rates_and_channels_are_resampled_separately():
    stereo = np.stack([syllables(3, 2)] * 2, axis=1)
    for format, subtype in (("MP3", None), ("OGG", "VORBIS"), ("FLAC", None), ("WAV", None)):
        one = encoded(syllables(2, 1), format, subtype, 16_000)  # lasts 3 s
        two = encoded(stereo, format, subtype, 24_000)
        assert seconds_of(one + two) == pytest.approx(6, abs=1e-3)
        both = read_audio(one + two, RATE)
        np.testing.assert_allclose(both[72_000:], read_audio(two, RATE), atol=1e-4)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_a_wrong_xing_header_is_replaced_unless_bytes_are_missing(mode):
    content = mp3(syllables(3, 1), mode)
    at = content.index(b"Xing" if mode == "VARIABLE" else b"Info") + 8
    real = len(frames(content)) - 2
    for count in (0, 10, real + 1, 5000):
        assert 3 <= seconds_of(patched(content, (at, struct.pack(">I", count)))) < 3.1
    wrong = patched(content, (at, struct.pack(">II", 5000, 10**6)))
    assert reason(wrong) == "truncated"
    assert seconds_of(patched(content, (at + 4, bytes(4)))) == 3


def test_a_truncated_mp3_is_detected_with_and_without_a_header():
    content = mp3(syllables(3, 1))
    for whole in (content, without_header(content)):
        assert reason(whole[:-50]) == "truncated"
        for rest in (20, 3):
            assert reason(whole[: frames(whole)[50] + rest]) == "truncated"
    assert reason(content[: frames(content)[-5]]) == "truncated"  # between frames
    assert reason(without_header(content)[:-50] + mp3(syllables(1, 2))) == "undecodable"


def test_an_mp3_with_a_gap_or_unknown_bytes_is_undecodable_and_one_with_tags_is_read():
    content = without_header(mp3(syllables(3, 1)))
    seconds = seconds_of(content)
    for whole in (ID3 + content, content + TAG, content + APE + TAG, b"x" * 99 + content):
        assert seconds_of(whole) == seconds
    assert seconds_of(content + bytes(100)) == seconds  # padding
    assert reason(content[:3000] + bytes(500) + content[3500:]) == "undecodable"
    assert reason(content[:3000] + content[3500:]) == "undecodable"
    assert reason(content + bytes(9000)) == "undecodable"  # a download that was not finished


def flac_of_unknown_length(audio: np.ndarray) -> bytes:
    """Returns a FLAC like that of an encoder that writes to a pipe: without sample count and MD5."""
    content = encoded(audio, "FLAC", "PCM_16")
    return patched(content, (21, bytes([content[21] & 0xF0]) + bytes(4)), (26, bytes(16)))


def test_a_flac_of_unknown_length_is_read_to_its_end_and_in_ranges(tmp_path):
    audio = syllables(3, 1)
    known = encoded(audio, "FLAC", "PCM_16")
    content = flac_of_unknown_length(audio)
    assert seconds_of(content, tmp_path) == 3
    for times in ((0.5, 1.25), (2.5, None), (1.0, 3.4)):
        np.testing.assert_array_equal(
            read_audio(content, RATE, *times), read_audio(known, RATE, *times)
        )
    assert (
        seconds_of(content + TAG)
        == seconds_of(content + APE + TAG)
        == seconds_of(ID3 + content)
        == 3
    )
    assert seconds_of(content + content) == seconds_of(known + content) == 6
    for length in (len(content) // 2, len(content) - 1):
        assert reason(content[:length]) == "truncated"


def test_a_flac_with_a_wrong_length_in_its_header_is_read_to_its_end_or_truncated():
    content = encoded(syllables(3, 1), "FLAC", "PCM_16")
    assert seconds_of(patched(content, (22, struct.pack(">I", 30_000)))) == 3
    assert reason(patched(content, (22, struct.pack(">I", 90_000)))) == "truncated"
    assert seconds_of(content + content) == 6


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_streams_are_all_decoded(tmp_path, subtype):
    one, two = (encoded(syllables(s, s), "OGG", subtype) for s in (2, 3))
    assert seconds_of(one + two, tmp_path) == 5
    both = np.concatenate([read_audio(one, RATE), read_audio(two, RATE)])
    np.testing.assert_allclose(read_audio(one + two, RATE), both, atol=1e-6)
    assert reason(one + two[:-10]) == "truncated"
    assert reason(one + b"x" * 9 + two) == "undecodable"


UNKNOWN = [0, 0xFFFF_FFFF, 0x7FFF_F000]


@pytest.mark.parametrize("data", UNKNOWN)
@pytest.mark.parametrize("riff", [*UNKNOWN, None])
def test_a_wav_without_sizes_in_its_header_is_read_to_its_end(tmp_path, riff, data):
    audio = syllables(2, 1)
    for subtype, endian in (
        ("PCM_16", "LITTLE"),
        ("PCM_16", "BIG"),
        ("FLOAT", None),
        ("ULAW", None),
    ):
        content = encoded(audio, "WAV", subtype, endian=endian)
        order = ">I" if content[:4] == b"RIFX" else "<I"
        at = content.index(b"data")
        bad = patched(content, (at + 4, struct.pack(order, data)))
        if riff is not None:
            bad = patched(bad, (4, struct.pack(order, riff)))
        np.testing.assert_array_equal(read_audio(bad, RATE), read_audio(content, RATE))
        assert seconds_of(bad, tmp_path) == 2
        assert len(read_audio(bad, RATE, 0.5, 1.0)) == 12_000


def test_a_wav_whose_header_counts_too_few_samples_is_read_to_its_end_or_rejected():
    content = encoded(syllables(2, 1), "WAV", "PCM_16")
    too_few = patched(content, (40, struct.pack("<I", 1000)))
    assert seconds_of(too_few) == 2
    assert reason(patched(too_few, (4, struct.pack("<I", 1036)))) == "undecodable"
    listed = content + b"LIST\x06\0\0\0INFOab" + b"id3 \x03\0\0\0abc\0"
    assert seconds_of(listed) == 2
    assert reason(encoded(syllables(2, 1)[:0], "WAV") + b"LIST\x04\0\0\0INFO") == "empty"


def test_other_containers_without_sizes_in_their_headers_are_read_to_their_end(tmp_path):
    audio = syllables(2, 1)
    rf64, w64 = encoded(audio, "RF64", "PCM_16"), encoded(audio, "W64", "PCM_16")
    aiff, au = encoded(audio, "AIFF", "PCM_16"), encoded(audio, "AU", "PCM_16")
    caf, aifc = encoded(audio, "CAF", "PCM_16"), encoded(audio, "AIFF", "FLOAT")
    files = []
    for size in (0, 2**64 - 1):
        files.append(patched(rf64, (rf64.index(b"ds64") + 8, struct.pack("<QQ", size, size))))
    for size in (0, 24, 2**63 - 1, 2**64 - 1):
        data = w64.index(b"data") + 16
        files.append(patched(w64, (16, struct.pack("<Q", size)), (data, struct.pack("<Q", size))))
    for content in (aiff, aifc):
        data, count = content.index(b"SSND") + 4, content.index(b"COMM") + 10
        for form, size in ((0, 0), (None, 8), (2**32 - 1, 2**32 - 1), (None, 1008)):
            bad = patched(content, (data, struct.pack(">I", size)), (count, bytes(4)))
            files.append(bad if form is None else patched(bad, (4, struct.pack(">I", form))))
    for size in (0, 2**32 - 1):
        files.append(patched(au, (8, struct.pack(">I", size))))
    for size in (0, -1):
        files.append(patched(caf, (caf.index(b"data") + 4, struct.pack(">q", size))))
    for content in files:
        assert seconds_of(content, tmp_path) == 2


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAVEX", "FLOAT"),
        ("RF64", "PCM_24"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AIFF", "FLOAT"),
        ("SVX", "PCM_16"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("AU", "PCM_16"),
        ("NIST", "PCM_16"),
        ("NIST", "ULAW"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", None),
    ],
)
def test_in_every_container_a_cut_is_detected_and_a_second_file_is_decoded(
    tmp_path, format, subtype
):
    content = encoded(syllables(2, 1), format, subtype)
    seconds = seconds_of(content, tmp_path)
    assert seconds == pytest.approx(2, abs=0.05)
    assert reason(content[: len(content) * 2 // 3]) == "truncated"
    assert seconds_of(content + TAG, tmp_path) == seconds
    if subtype != "ALAC_16":  # libsndfile may write a chunk of it with one byte too many
        assert seconds_of(content + content, tmp_path) == pytest.approx(2 * seconds)
    if format not in ("FLAC", "OGG", "MP3"):
        assert reason(content + os.urandom(9000)) == "undecodable"


def test_a_format_whose_length_cannot_be_checked_is_rejected(tmp_path):
    with pytest.raises(AudioError, match="AVR file cannot be checked: convert it to WAV or FLAC"):
        read_audio(encoded(syllables(1, 1), "AVR", "PCM_16"), RATE)
    assert len(read_audio(encoded(syllables(1, 1), "IRCAM", "PCM_16"), RATE)) == RATE


def test_a_file_that_changes_between_two_reads_is_parsed_again(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(syllables(2, 1)))
    assert len(read_audio(path, RATE)) == 2 * RATE
    path.write_bytes(mp3(syllables(2, 1)) + mp3(syllables(3, 2)))
    assert len(read_audio(path, RATE)) == 5 * RATE


@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (24_000, 2), (44_100, 2), (8_000, 1)])
def test_a_range_of_an_mp3_of_low_bitrate_does_not_begin_with_silence(rate, channels):
    tone = np.sin(2 * np.pi * 440 * np.arange(8 * rate) / rate)
    for loudness in (0.1, 0.001):
        audio = loudness * np.stack([tone] * channels, axis=1)
        content = encoded(audio, "MP3", None, rate, bitrate_mode="VARIABLE", compression_level=0.9)
        whole = read_audio(content, rate)
        for start in np.arange(0.5, 6, 0.43):
            part = read_audio(content, rate, start, start + 1)
            first = round(start * rate)
            np.testing.assert_allclose(part, whole[first : first + len(part)], atol=1e-6)


def test_a_range_of_a_coding_that_cannot_seek_is_read():
    content = encoded(syllables(3, 1), "WAV", "GSM610")
    whole = read_audio(content, RATE)
    np.testing.assert_array_equal(read_audio(content, RATE, 1.0, 2.0), whole[24_000:48_000])
