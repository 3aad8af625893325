"""Reading sound files: formats, rates, time ranges, and the reason of each error."""

import numpy as np
import pytest
import soundfile
from codec_voices import small_codec, syllables

from soda_jax.codecs import audio
from soda_jax.codecs.audio import AudioError, encode_long, read_audio, sound_seconds, write_wav


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


def reason(*arguments, **options) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert str(arguments[0]) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"),
    [
        ("wav", "PCM_16", 24_000),
        ("wav", "FLOAT", 44_100),
        ("wav", "PCM_U8", 8_000),
        ("flac", "PCM_24", 48_000),
        ("ogg", "VORBIS", 16_000),
        ("aiff", "PCM_16", 22_050),
        ("mp3", "MPEG_LAYER_III", 44_100),
    ],
)
def test_every_format_and_rate_is_read_as_mono_at_the_codecs_rate(tmp_path, suffix, subtype, rate):
    path = tmp_path / f"tone.{suffix}"
    left = tone(rate)
    # The right channel is half as loud: the mean of both is 3/4 of the left.
    soundfile.write(path, np.stack([left, 0.5 * left], axis=1), rate, subtype=subtype)
    audio = read_audio(path, 24_000)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert abs(len(audio) - 24_000) <= 24_000 * 0.06  # MP3 pads its ends
    middle = audio[6_000:18_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440 * len(middle) // 24_000
    assert np.abs(middle).max() == pytest.approx(0.375, rel=0.05)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_time_range_equals_that_part_of_the_whole_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, syllables(3, 1), 24_000)
    whole = read_audio(path, 24_000)
    part = read_audio(path, 24_000, start=0.5, end=1.25)
    assert len(part) == 18_000
    np.testing.assert_allclose(part, whole[12_000:30_000], atol=1e-4)
    np.testing.assert_allclose(read_audio(path, 24_000, start=2.5), whole[60_000:], atol=1e-4)


def test_a_range_may_end_up_to_half_a_second_after_the_file(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, syllables(2, 1), 24_000)
    assert len(read_audio(path, 24_000, start=1.5, end=2.4)) == 12_000
    assert reason(path, 24_000, start=1.5, end=2.6) == "truncated"
    assert reason(path, 24_000, start=2.0) == "truncated"


def test_bad_files_raise_an_error_with_its_reason(tmp_path):
    assert reason(tmp_path / "no.wav", 24_000) == "missing"
    assert reason(tmp_path, 24_000) == "missing"
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    assert reason(path, 24_000) == "empty"
    path.write_bytes(b"this is a sentence and not audio")
    assert reason(path, 24_000) == "undecodable"
    soundfile.write(path, np.zeros(0, np.float32), 24_000)
    assert reason(path, 24_000) == "empty"
    soundfile.write(path, np.zeros(2_400, np.float32), 24_000)
    assert reason(path, 24_000) == "silent"
    for value in (np.nan, np.inf):
        samples = syllables(1, 0)
        samples[99] = value
        soundfile.write(path, samples, 24_000, subtype="FLOAT")
        assert reason(path, 24_000) == "not_finite"


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "ogg"])
def test_a_truncated_file_is_detected(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, syllables(2, 0), 24_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert reason(path, 24_000) in ("truncated", "undecodable")
    if suffix != "flac":
        assert reason(path, 24_000) == "truncated"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_cut_within_a_page_is_truncated_and_one_cut_between_pages_is_read(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    soundfile.write(path, syllables(6, 0), 24_000, subtype=subtype)
    content = path.read_bytes()
    for length in (len(content) // 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert reason(path, 24_000) == "truncated"
    path.write_bytes(content + b"TAG" + bytes(125))  # as some taggers leave it
    assert len(read_audio(path, 24_000)) > 0
    # A recording of a live stream ends with a complete page that has no end flag.
    path.write_bytes(content[: content.rindex(b"OggS")])
    assert len(read_audio(path, 24_000)) > 0


def test_a_file_without_read_permission_is_undecodable(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000), 24_000)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(audio, "open", refuse, raising=False)
    assert reason(path, 24_000) == "undecodable"


def test_a_wav_from_a_pipe_without_a_size_in_its_header_is_read(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000), 24_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read_audio(path, 24_000)) == 24_000


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (1.0, 0.5), (-0.1, 1.0), (float("nan"), 1), (0.0, float("nan"))]
)
def test_invalid_time_ranges_are_rejected(tmp_path, start, end):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000), 24_000)
    assert reason(path, 24_000, start=start, end=end) == "end_before_start"


def test_written_audio_is_clipped_and_reads_back_within_a_quantization_step(tmp_path):
    path = tmp_path / "deep" / "a.wav"
    audio = np.concatenate([syllables(0.5, 0), np.array([1.7, -1.7], np.float32)])
    write_wav(path, audio, 24_000)
    np.testing.assert_allclose(read_audio(path, 24_000), np.clip(audio, -1, 1), atol=1.5 / 32_768)
    assert [file.name for file in path.parent.iterdir()] == ["a.wav"]


def test_a_long_clip_is_encoded_in_pieces_of_whole_frames_within_the_limit():
    codec = small_codec()
    audio = syllables(5.03, 4)
    lengths = []

    class Spy:
        frame_rate, samples_per_frame = codec.frame_rate, codec.samples_per_frame

        def encode(self, clips):
            lengths.extend(map(len, clips))
            return codec.encode(clips)

    codes = encode_long(Spy(), audio, max_seconds=2)
    assert len(codes) == -(-len(audio) // 1920)
    assert lengths == [48_000, 48_000, len(audio) - 96_000]
    np.testing.assert_array_equal(codes[:25], codec.encode([audio[:48_000]])[0])
    np.testing.assert_array_equal(encode_long(codec, audio), codec.encode([audio])[0])
    assert encode_long(codec, audio[:0]).shape == (0, 3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "mp3"])
def test_the_content_of_a_file_reads_like_the_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, syllables(3, 1), 24_000)
    content = path.read_bytes()
    for times in ((None, None), (0.5, 1.25), (2.5, None)):
        np.testing.assert_array_equal(
            read_audio(content, 24_000, *times), read_audio(path, 24_000, *times)
        )
    assert sound_seconds(content) == sound_seconds(path) == pytest.approx(3, abs=0.1)


def test_bad_content_raises_an_error_with_its_reason_and_the_given_name(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000), 24_000)
    content = path.read_bytes()
    for cut, wanted in ((0, "empty"), (20, "truncated"), (len(content) // 2, "truncated")):
        with pytest.raises(AudioError, match=r"a\.tar: x\.wav: ") as caught:
            read_audio(content[:cut], 24_000, name="a.tar: x.wav")
        assert caught.value.reason == wanted
    with pytest.raises(AudioError, match=r"sound in memory: 2 s to 1\.0 s is not") as caught:
        read_audio(content, 24_000, 2.0, 1.0)
    with pytest.raises(AudioError) as caught:
        read_audio(b"a sentence about audio, and no audio", 24_000)
    assert caught.value.reason == "undecodable"
    assert sound_seconds(b"a sentence") is None


@pytest.mark.parametrize("factor", [40, 32_768, 2.0**31])
def test_samples_in_the_range_of_an_integer_type_have_the_wrong_scale(tmp_path, factor):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000) * factor, 24_000, subtype="DOUBLE")
    assert reason(path, 24_000) == "wrong_scale"


@pytest.mark.parametrize("peak", [1.05, 2.0, 8.0])
def test_a_float_mix_above_full_scale_is_not_scaled(tmp_path, peak):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000) * 2 * peak, 24_000, subtype="FLOAT")
    assert np.abs(read_audio(path, 24_000)).max() == pytest.approx(peak, rel=0.01)


def test_channels_that_cancel_are_not_reported_as_silent(tmp_path):
    path, left = tmp_path / "a.wav", tone(24_000)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(left))
    for right in (-left, -left + noise):
        soundfile.write(path, np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
        assert reason(path, 24_000) == "channels_cancel"
    for right in (0 * left, -0.9 * left, noise):
        soundfile.write(path, np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
        assert len(read_audio(path, 24_000)) == 24_000
    soundfile.write(path, np.stack([1e-4 * left, 0 * left], axis=1), 24_000, subtype="FLOAT")
    assert reason(path, 24_000) == "silent"


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_the_mean_of_the_channels_has_the_same_bits_as_numpys(channels):
    samples = np.random.default_rng(0).standard_normal((999, channels)).astype(np.float32)
    np.testing.assert_array_equal(audio._mix(samples), samples.mean(axis=1, dtype=np.float32))
