"""The two-encoder codec compared with its models, which are small and have random weights."""

import argparse
import json
import pickle

import numpy as np
import pytest
import soxr

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from soda_jax.codecs import load_codec, saved_codec  # noqa: E402
from soda_jax.codecs.audio import encode_long, write_wav  # noqa: E402
from soda_jax.codecs.encoder_pair import EncoderPair  # noqa: E402
from soda_jax.codecs.two_encoder import TwoEncoderCodec  # noqa: E402
from soda_jax.commands import codec as command  # noqa: E402
from soda_jax.errors import UserError  # noqa: E402

UNITS, LEVELS, LAYER = 12, 2, 2
FRAME = 960  # samples of 1/25 s at 24 kHz


def voice(seconds: float, seed: int) -> np.ndarray:
    """Returns float32 mono at 24 kHz: noise with slow changes of loudness and color."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 24_000)) / 24_000
    tone = np.sin(2 * np.pi * np.cumsum(150 + 900 * (np.sin(7 * time + seed) > 0)) / 24_000)
    noise = rng.standard_normal(len(time))
    return (0.1 * (tone + noise * (np.sin(5 * time) > 0))).astype(np.float32)


def save_models(folder, large=False):
    """Saves a HuBERT of three layers and an EnCodec of eight quantizers with the real strides.

    The large HuBERTs normalize before each layer and after the last one.
    """
    torch.manual_seed(0)
    hubert = transformers.HubertModel(
        transformers.HubertConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer" if large else "group",
            do_stable_layer_norm=large,
        )
    )
    encodec = transformers.EncodecModel(
        transformers.EncodecConfig(
            hidden_size=8,
            num_filters=2,
            num_lstm_layers=1,
            codebook_size=16,
            target_bandwidths=[0.3, 0.9, 2.4],
        )
    )
    with torch.inference_mode():  # entries near the latents of a sound, so that the codes vary
        left = encodec.encoder(torch.from_numpy(voice(2, 9))[None, None])[0].T
        for layer in encodec.quantizer.layers:
            layer.codebook.embed.copy_(left[torch.randperm(len(left))[:16]])
            left = left - layer.decode(layer.encode(left.T[None]))[0].T
    hubert.save_pretrained(folder / "hubert")
    encodec.save_pretrained(folder / "encodec")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def codec(models):
    pair = EncoderPair(models / "hubert", models / "encodec", LEVELS, LAYER)
    return TwoEncoderCodec.fit([voice(3, 1), voice(2, 2)], pair, units=UNITS)


@pytest.fixture
def saved(codec, tmp_path):
    codec.save(tmp_path / "codec")
    return tmp_path / "codec"


def test_a_frame_has_a_unit_and_three_steps_of_each_quantizer(codec):
    assert (codec.sample_rate, codec.samples_per_frame, codec.frame_rate) == (24_000, FRAME, 25)
    assert codec.codebook_sizes == (UNITS, *[16] * 3 * LEVELS)


@pytest.mark.parametrize("samples", [0, 1, FRAME, FRAME + 1, 20_000])
def test_frames_are_the_ceiling_of_samples_over_samples_per_frame(codec, samples):
    (codes,) = codec.encode([voice(1, 0)[:samples]])
    assert codes.shape == (-(-samples // FRAME), 1 + 3 * LEVELS) and codes.dtype == np.uint16
    assert (codes < np.array(codec.codebook_sizes)).all()
    (audio,) = codec.decode([codes])
    assert audio.shape == (len(codes) * FRAME,) and audio.dtype == np.float32
    assert np.abs(audio).max(initial=0) <= 1


def test_acoustic_columns_equal_the_codes_of_encodec_and_decode_to_its_sound(codec, models):
    clip = voice(1, 3)
    (codes,) = codec.encode([clip])
    encodec = transformers.EncodecModel.from_pretrained(models / "encodec").eval()
    with torch.inference_mode():
        # 0.9 kbit/s are three quantizers, of which the codec uses the first two.
        wanted = encodec.encode(torch.from_numpy(clip)[None, None], bandwidth=0.9).audio_codes
        for levels in (1, LEVELS):
            part = wanted[:, :, :levels]
            sound = encodec.decode(part, [None]).audio_values[0, 0].clip(-1, 1).numpy()
            for columns in range(1 + 3 * levels, min(4 + 3 * levels, 2 + 3 * LEVELS)):
                (audio,) = codec.decode([codes[:, :columns]])
                np.testing.assert_array_equal(audio, sound)
    assert wanted.shape == (1, 1, 3, 75)
    for level in range(LEVELS):
        steps = codes[:, 1 + 3 * level : 4 + 3 * level].reshape(-1)
        np.testing.assert_array_equal(steps, wanted[0, 0, level])
    assert len(np.unique(codes[:, 1:])) > 4  # of 16: the compared codes are not constant


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_units_are_the_centers_nearest_to_the_mean_feature_of_the_layer(tmp_path, large):
    models = save_models(tmp_path, large)
    pair = EncoderPair(models / "hubert", models / "encodec", LEVELS, LAYER)
    clip = voice(1, 4)
    low = soxr.resample(clip, 24_000, 16_000)
    low = (low - low.mean()) / np.sqrt(low.var() + 1e-7)
    padded = torch.from_numpy(
        np.pad(low, 40)
    )  # a step depends on 400 samples, its 320 and 40 on either side
    hubert = transformers.HubertModel.from_pretrained(models / "hubert").eval()
    with torch.inference_mode():
        state = hubert(padded[None], output_hidden_states=True).hidden_states[LAYER][0].numpy()
    features = state.reshape(25, 2, -1).mean(axis=1)
    np.testing.assert_allclose(pair.features(clip), features, rtol=1e-4, atol=1e-5)
    codec = TwoEncoderCodec(pair, features[::3])
    nearest = ((features[:, None] - features[None, ::3]) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(codec.encode([clip])[0][:, 0], nearest)


def test_fitted_units_are_the_centers_of_their_frames(codec):
    clips = [voice(3, 1), voice(2, 2)]  # the clips that the units were fitted on
    features = np.concatenate([codec._pair.features(clip) for clip in clips])
    units = np.concatenate([codes[:, 0] for codes in codec.encode(clips)])
    assert len(np.unique(units)) == UNITS
    for unit in range(UNITS):
        center = features[units == unit].mean(axis=0)
        np.testing.assert_allclose(codec._units[unit], center, rtol=1e-3, atol=1e-3)


def test_codes_do_not_depend_on_the_batch(codec):
    clips = [voice(seconds, i) for i, seconds in enumerate((0.3, 2.0, 1.1, 0.04))]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        np.testing.assert_array_equal(codec.encode([clip])[0], codes)
    for codes, audio in zip(together, codec.decode(together), strict=True):
        np.testing.assert_array_equal(codec.decode([codes])[0], audio)


def test_a_long_clip_is_encoded_in_pieces_of_whole_frames(codec):
    clip = voice(2.5, 5)
    codes = encode_long(codec, clip, max_seconds=1)
    pieces = codec.encode([clip[:24_000], clip[24_000:48_000], clip[48_000:]])
    np.testing.assert_array_equal(codes, np.concatenate(pieces))


def test_columns_without_a_complete_quantizer_are_rejected(codec):
    for columns in (1, 2, 3):
        with pytest.raises(
            ValueError, match="cannot be decoded to sound: give at least 4"
        ) as caught:
            codec.decode([np.zeros((5, columns), np.uint16)])
        assert isinstance(caught.value, UserError)  # a single line on the command line
    with pytest.raises(ValueError, match=r"codes\[1, 0\] = 12 is outside codebook 0 \(0–11\)"):
        codec.decode([np.array([[0, 0, 0, 0], [12, 0, 0, 0]])])
    with pytest.raises(ValueError, match="not mono"):
        codec.encode([np.zeros((100, 2), np.float32)])


def test_a_saved_codec_loads_with_the_same_codes_audio_and_fingerprint(codec, saved, tmp_path):
    saved.rename(tmp_path / "moved")
    loaded = load_codec(saved_codec(tmp_path / "moved"))
    assert loaded.name == "two_encoder" and loaded.fingerprint == codec.fingerprint
    clip = voice(1, 5)
    codes = codec.encode([clip])
    np.testing.assert_array_equal(loaded.encode([clip])[0], codes[0])
    np.testing.assert_array_equal(loaded.decode(codes)[0], codec.decode(codes)[0])
    loaded.save(tmp_path / "again")
    assert load_codec(f"two_encoder:{tmp_path}/again").fingerprint == codec.fingerprint


def test_fingerprint_covers_units_weights_layer_and_quantizers(codec, models):
    def pair(levels=LEVELS, layer=LAYER):
        return EncoderPair(models / "hubert", models / "encodec", levels, layer)

    units = codec._units
    assert TwoEncoderCodec(pair(), units).fingerprint == codec.fingerprint
    moved = units.copy()
    moved[3, 5] = np.nextafter(moved[3, 5], np.float32(9))
    changed = pair()
    with torch.no_grad():
        next(changed._encodec.decoder.parameters())[0] += 1
    other = {
        TwoEncoderCodec(*parts).fingerprint
        for parts in (
            (pair(), moved),
            (changed, units),
            (pair(levels=1), units),
            (pair(layer=3), units),
        )
    }
    assert len({codec.fingerprint, *other}) == 5


def test_the_same_audio_and_seed_fit_the_same_units(codec, models):
    pair = EncoderPair(models / "hubert", models / "encodec", LEVELS, LAYER)
    again = TwoEncoderCodec.fit([voice(3, 1), voice(2, 2)], pair, units=UNITS)
    assert again.fingerprint == codec.fingerprint
    with pytest.raises(UserError, match="25 frames of audio are too few"):
        TwoEncoderCodec.fit([voice(1, 1)], pair, units=26)
    with pytest.raises(UserError, match="no audio"):
        TwoEncoderCodec.fit([], pair)
    with pytest.raises(UserError, match="--units=0"):
        TwoEncoderCodec.fit([voice(1, 1)], pair, units=0)


def test_unsuitable_models_are_rejected(models, tmp_path):
    hubert, encodec = models / "hubert", models / "encodec"
    with pytest.raises(UserError, match=r"--layer=4: .* has layers 1 to 3"):
        EncoderPair(hubert, encodec, 1, 4)
    with pytest.raises(UserError, match=r"9 quantizers are not possible: .* has 8"):
        EncoderPair(hubert, encodec, 9, 1)
    with pytest.raises(UserError, match="nowhere cannot be opened as HubertModel"):
        EncoderPair(tmp_path / "nowhere", encodec, 1, 1)
    with pytest.raises(UserError, match=r"hubert (is not a|cannot be opened as) EncodecModel"):
        EncoderPair(hubert, hubert, 1, 1)
    settings = json.loads((encodec / "config.json").read_text())
    stereo = transformers.EncodecModel(
        transformers.EncodecConfig(**{**settings, "audio_channels": 2, "normalize": True})
    )
    stereo.save_pretrained(tmp_path / "stereo")
    with pytest.raises(UserError, match="2 channels, normalize=True"):
        EncoderPair(hubert, tmp_path / "stereo", 1, 1)


def test_invariant_10_a_pickle_in_the_file_of_weights_is_not_executed(saved, tmp_path):
    witness = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    for file in ("units.safetensors", "hubert/model.safetensors", "encodec/model.safetensors"):
        good = (saved / file).read_bytes()
        (saved / file).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError):
            load_codec(f"two_encoder:{saved}")
        (saved / file).write_bytes(good)
    assert not witness.exists()


def test_invariant_10_valid_weights_in_a_pickle_are_rejected(saved):
    weights = saved / "encodec/model.safetensors"
    torch.save(safetensors.load_file(weights), saved / "encodec/pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="encodec cannot be opened as EncodecModel"):
        load_codec(f"two_encoder:{saved}")


def test_a_damaged_or_foreign_codec_is_rejected_in_one_line_that_names_the_file(saved):
    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            load_codec(f"two_encoder:{saved}")
        assert "\n" not in str(caught.value)

    for file in ("units.safetensors", "hubert/model.safetensors", "encodec/model.safetensors"):
        good = (saved / file).read_bytes()
        (saved / file).write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:])
        refused("does not match the files")
        (saved / file).write_bytes(good[: len(good) // 2])
        refused(file.split("/")[0])
        (saved / file).unlink()
        refused(file.split("/")[0])
        (saved / file).write_bytes(good)
    description = saved / "codec.json"
    value = json.loads(description.read_text())
    for change, match in (
        ({"format_version": 4}, "format version 4"),
        ({"name": "mel"}, "describes a .mel. codec: write mel:DIR"),
        ({"quantizers": 1}, "does not match the files"),
        ({"quantizers": None}, "does not describe a two_encoder codec"),
    ):
        description.write_text(json.dumps({**value, **change}))
        refused(match)
    description.unlink()
    refused("codec.json cannot be read")


def test_the_command_fits_encodes_and_decodes(models, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def soda_codec(*arguments):
        return command.run(parser.parse_args([str(argument) for argument in arguments]))

    for i in range(3):
        write_wav(tmp_path / "audio" / f"{i}.wav", voice(2, i), 24_000)
    found = (f"--hubert={models}/hubert", f"--encodec={models}/encodec", "--quantizers=1")
    output, clip = f"--output={tmp_path}/codec", tmp_path / "audio/1.wav"
    fit = ("fit-units", tmp_path / "audio", output, *found, "--units=8", "--layer=1")
    assert soda_codec(*fit) == 0
    assert "25 frames/s, 4 codebooks" in capsys.readouterr().out
    spec, codes = f"--codec=two_encoder:{tmp_path}/codec", tmp_path / "codes.npz"
    assert soda_codec("encode", clip, spec, f"--output={codes}") == 0
    assert soda_codec("decode", codes, spec, f"--output={tmp_path}/out.wav") == 0
    with pytest.raises(UserError, match="cannot be decoded to sound"):
        soda_codec("decode", codes, spec, f"--output={tmp_path}/x.wav", "--codebooks=1")
