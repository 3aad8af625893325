"""The mel codec: shapes, determinism, files and errors."""

import json
import pickle

import numpy as np
import pytest
from codec_voices import SMALL, small_codec, syllables

from soda_jax.codecs import load_codec, saved_codec
from soda_jax.codecs.mel import MelCodec, MelSettings
from soda_jax.codecs.mel_features import MelGrid, log_mel, mel_to_audio
from soda_jax.errors import UserError


@pytest.fixture(scope="module")
def codec():
    return small_codec()


@pytest.fixture
def saved(codec, tmp_path):
    codec.save(tmp_path / "codec")
    return tmp_path / "codec"


def test_default_settings_have_mimis_token_shape():
    settings = MelSettings()
    codec = MelCodec(settings, small_codec()._quantizer)
    assert codec.sample_rate == 24_000
    assert codec.samples_per_frame == 1920
    assert codec.frame_rate == 12.5
    assert codec.codebook_sizes == (512,) * 8


@pytest.mark.parametrize("samples", [0, 1, 1919, 1920, 1921, 30_000])
def test_frames_are_the_ceiling_of_samples_over_samples_per_frame(codec, samples):
    (codes,) = codec.encode([syllables(2, 0)[:samples]])
    assert codes.shape == (-(-samples // 1920), 3)
    assert codes.dtype == np.uint16
    assert (codes < np.array([16, 12, 8])).all()
    (audio,) = codec.decode([codes])
    assert audio.shape == (len(codes) * 1920,)
    assert audio.dtype == np.float32
    assert np.abs(audio).max(initial=0) <= 1


def test_codes_do_not_depend_on_the_batch(codec):
    clips = [syllables(seconds, i) for i, seconds in enumerate((0.3, 2.0, 1.1, 0.08))]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        np.testing.assert_array_equal(codec.encode([clip])[0], codes)
    for codes, audio in zip(together, codec.decode(together), strict=True):
        np.testing.assert_array_equal(codec.decode([codes])[0], audio)


def test_decoded_audio_is_near_the_original_in_log_mel_and_nearer_with_more_codebooks(codec):
    clip = syllables(3, 99)[: 1920 * 30]
    target = log_mel(clip, SMALL.grid)
    codes = codec.encode([clip])[0]
    errors = [
        np.abs(codec._quantizer.decode(codes[:, :n]).reshape(-1, 80) - target).mean()
        for n in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    # A codec without any information would return the mean.
    assert errors[2] < 0.5 * np.abs(target - target.mean(axis=0)).mean()


def test_griffin_lim_reproduces_its_columns():
    grid = MelGrid()
    clip = syllables(1, 3)[: 480 * 48]
    columns = log_mel(clip, grid)
    again = log_mel(mel_to_audio(columns, grid, iterations=16), grid)
    assert np.sqrt(((again - columns) ** 2).mean()) < 0.5 * columns.std()


def test_a_full_scale_sine_has_about_its_amplitude_in_its_band():
    grid = MelGrid()
    sine = np.sin(2 * np.pi * 1000 * np.arange(24_000) / 24_000).astype(np.float32)
    column = np.exp(log_mel(sine, grid)[25])
    band = column.argmax()
    # The filter of the band averages over several bins, of which the sine occupies one or two.
    assert 0.2 < column[band] <= 1.0
    assert column[band] > 20 * column[band + 10]


def test_equal_audio_and_seed_fit_equal_codecs_and_another_seed_a_different_one(codec):
    assert small_codec().fingerprint == codec.fingerprint
    assert small_codec(seed=1).fingerprint != codec.fingerprint


def test_fingerprint_covers_parameters_and_settings(codec):
    quantizer = codec._quantizer
    settings = MelSettings(codebook_sizes=(16, 12, 8), components=24, griffin_lim_iterations=5)
    assert MelCodec(settings, quantizer).fingerprint != codec.fingerprint
    moved = quantizer.codebooks[2].copy()
    moved[7, 3] = np.nextafter(moved[7, 3], np.float32(9))
    changed = type(quantizer)(quantizer.mean, quantizer.basis, (*quantizer.codebooks[:2], moved))
    assert MelCodec(SMALL, changed).fingerprint != codec.fingerprint
    assert len(codec.fingerprint) >= 16
    int(codec.fingerprint, 16)


def test_a_saved_codec_loads_with_the_same_codes_audio_and_fingerprint(codec, saved, tmp_path):
    other = tmp_path / "moved"
    saved.rename(other)
    clip = syllables(1, 5)
    for spec in (f"mel:{other}", f"mel:{other}/codec.safetensors"):
        loaded = load_codec(spec)
        assert loaded.fingerprint == codec.fingerprint
        np.testing.assert_array_equal(loaded.encode([clip])[0], codec.encode([clip])[0])
        codes = codec.encode([clip])
        np.testing.assert_array_equal(loaded.decode(codes)[0], codec.decode(codes)[0])


def test_invariant_10_a_pickle_in_the_file_of_weights_is_not_executed(saved, tmp_path):
    witness = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    (saved / "codec.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"codec\.safetensors is not a safetensors file"):
        load_codec(f"mel:{saved}")
    assert not witness.exists()


def test_a_damaged_or_foreign_codec_is_rejected_with_the_name_of_the_file(saved):
    weights, description = saved / "codec.safetensors", saved / "codec.json"
    good_weights, good = weights.read_bytes(), description.read_text()

    weights.write_bytes(good_weights[:-5] + bytes([good_weights[-5] ^ 1]) + good_weights[-4:])
    with pytest.raises(UserError, match="damaged"):
        load_codec(f"mel:{saved}")
    weights.write_bytes(good_weights[:100])
    with pytest.raises(UserError, match="not a safetensors file"):
        load_codec(f"mel:{saved}")
    weights.unlink()
    with pytest.raises(UserError, match=r"codec\.safetensors cannot be read"):
        load_codec(f"mel:{saved}")
    weights.write_bytes(good_weights)

    value = json.loads(good)
    for change in (
        {"format_version": 2},
        {"settings": {**value["settings"], "components": 25}},
        {"settings": {**value["settings"], "codebook_sizes": [16, 12, -8]}},
        {"settings": {**value["settings"], "surprise": 1}},
        {"settings": None},
        {"fingerprint": "0" * 32},
    ):
        description.write_text(json.dumps({**value, **change}))
        with pytest.raises(UserError, match=r"codec"):
            load_codec(f"mel:{saved}")
    description.write_text("[]")
    with pytest.raises(UserError, match="does not describe a mel codec"):
        load_codec(f"mel:{saved}")


def test_saved_codec_returns_the_spec(saved, tmp_path):
    assert saved_codec(saved) == f"mel:{saved}"
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            (tmp_path / "codec.json").write_text(content)
        with pytest.raises(UserError, match=r"codec\.json does not name a codec"):
            saved_codec(tmp_path)


def test_the_error_for_an_unknown_kind_lists_the_known_kinds():
    with pytest.raises(UserError, match=r"write mel:DIR.* or .*:DIR, the folder"):
        load_codec("opus:x")


@pytest.mark.parametrize("spec", ["mel:", "mel", "some/folder", "opus:x", "mel:/nowhere/at/all"])
def test_a_spec_without_a_codec_is_rejected(spec):
    with pytest.raises(UserError) as caught:
        load_codec(spec)
    assert "\n" not in str(caught.value)


def test_codes_that_cannot_be_decoded_are_rejected_with_their_index(codec):
    codes = np.zeros((20, 3), np.uint16)
    codes[17, 1] = 12
    with pytest.raises(ValueError, match=r"codes\[17, 1\] = 12 is outside codebook 1 \(0–11\)"):
        codec.decode([codes])
    for bad in (np.zeros((4, 4), int), np.zeros(4, int), np.zeros((4, 0), int), np.zeros((4, 3))):
        with pytest.raises(ValueError, match=r"codes (are|have)"):
            codec.decode([bad])
    with pytest.raises(ValueError, match="not mono"):
        codec.encode([np.zeros((100, 2), np.float32)])


def test_too_little_audio_to_fit_on_is_rejected():
    with pytest.raises(UserError, match="13 frames of audio are too few for a codebook of 16"):
        MelCodec.fit([syllables(1, 0)], SMALL)
    with pytest.raises(UserError, match="no audio"):
        MelCodec.fit([], SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"codebook_sizes": ()},
        {"codebook_sizes": (70_000,)},
        {"components": 321},
        {"columns_per_frame": 0},
        {"grid": MelGrid(floor=0)},
        {"grid": MelGrid(window=512)},
    ],
)
def test_invalid_settings_are_rejected(change):
    with pytest.raises(UserError):
        MelSettings(**change)
