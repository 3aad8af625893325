"""Mimi: results of transformers for a tiny model, batches, streams, devices, files."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from mimi_sounds import FIXTURE, HOP, sounds

from soda_jax import files
from soda_jax.codecs import load_codec
from soda_jax.codecs.audio import encode_long
from soda_jax.codecs.mimi import MimiCodec, MimiConfig
from soda_jax.codecs.mimi.runner import Batching
from soda_jax.codecs.mimi.streaming import StreamingDecoder, StreamingEncoder
from soda_jax.codecs.streaming import streaming_decoder
from soda_jax.errors import UserError

SMALL = Batching(clips=1, frames=(10, 5), inner=5)


@pytest.fixture(scope="module")
def codec() -> MimiCodec:
    return MimiCodec.load(FIXTURE, batching=SMALL, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "expected.npz", allow_pickle=False) as file:
        return dict(file)


def test_codes_equal_those_of_transformers(codec, expected):
    clips = sounds()
    found = codec.encode(list(clips.values()))
    same = [codes == expected[f"codes/{name}"] for name, codes in zip(clips, found, strict=True)]
    assert np.concatenate(same).mean() >= 0.999
    used = np.concatenate([expected[f"codes/{name}"] for name in clips])
    assert len(np.unique(used[:, 0])) > 8  # constant codes would be equal too


def test_decoded_audio_equals_that_of_transformers(codec, expected):
    codes = np.tile(np.arange(5)[:, None], (1, 8))
    found = codec.decode([codes])[0]
    assert found.std() > 0.01
    np.testing.assert_allclose(found, expected["decoded"].clip(-1, 1), atol=1e-4)


def test_codes_of_a_clip_do_not_depend_on_its_batch(codec):
    voice = sounds()["buzz"]
    clips = [voice, voice[: 7 * HOP - 5], voice[HOP:], voice[:0], voice[: 7 * HOP]]
    together = codec.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        assert codes.shape == (-(-len(clip) // HOP), 8) and codes.dtype == np.uint16
        np.testing.assert_array_equal(codes, codec.encode([clip])[0])
    # The last frame is padded with zeros.
    np.testing.assert_array_equal(
        together[1], codec.encode([np.pad(voice[: 7 * HOP - 5], (0, 5))])[0]
    )


def test_codes_of_a_clip_do_not_depend_on_the_rest_of_a_full_batch():
    wide = MimiCodec.load(
        FIXTURE, batching=Batching(4, (10, 5), 5), devices=jax.local_devices()[:1]
    )
    voice = sounds()["buzz"]
    clips = [voice, voice[: 7 * HOP - 5], voice[HOP:], sounds(1)["buzz"], voice[: 2 * HOP]]
    for clip, codes in zip(clips, wide.encode(clips), strict=True):
        np.testing.assert_array_equal(codes, wide.encode([clip])[0])


def test_batches_on_eight_devices_give_the_codes_of_single_clips_on_one_device(codec):
    batching = Batching(clips=2, frames=(10,), inner=5)
    wide = MimiCodec.load(FIXTURE, batching=batching)
    assert len(jax.local_devices()) == 8
    rng = np.random.default_rng(1)
    clips = [sounds(n)["buzz"][: rng.integers(1, 20) * HOP] for n in range(18)]
    for many, single in zip(wide.encode(clips), codec.encode(clips), strict=True):
        assert many.shape == single.shape and (many == single).mean() >= 0.999
    codes = [codec.encode([clip])[0] for clip in clips[:3]]
    for many, single in zip(wide.decode(codes), codec.decode(codes), strict=True):
        np.testing.assert_allclose(many, single, atol=1e-5)


def test_a_new_length_compiles_nothing(codec):
    voice = sounds()["buzz"]
    codec.encode([voice])
    compiled = codec.runner._encode[0]._cache_size()
    assert compiled <= len(SMALL.frames)
    codec.encode([voice[:n] for n in range(1, len(voice), 7_919)])
    assert codec.runner._encode[0]._cache_size() == compiled


@pytest.mark.parametrize("frames", [1, 3])
def test_a_stream_gives_the_codes_of_the_whole_clip(codec, frames):
    voice = sounds()["buzz"][: 17 * HOP - 100]
    stream = StreamingEncoder(codec, frames)
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.integers(0, len(voice), 9))
    codes = [stream.push(part) for part in np.split(voice, cuts)]
    whole = codec.encode([voice])[0]
    assert (
        len(np.concatenate(codes)) == 16 // frames * frames
    )  # each frame is returned once it is complete
    np.testing.assert_array_equal(np.concatenate([*codes, stream.finish()]), whole)
    compiled = codec.runner.encode_one.func._cache_size()
    again = StreamingEncoder(codec, frames)
    np.testing.assert_array_equal(again.push(voice), whole[: 16 // frames * frames])
    assert codec.runner.encode_one.func._cache_size() == compiled
    with pytest.raises(ValueError, match="finished"):
        stream.push(voice)


def test_reading_the_attributes_of_a_codec_uses_no_device(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a device was used")

    monkeypatch.setattr(jax, "device_put", refuse)
    monkeypatch.setattr(jax, "local_devices", refuse)
    codec = MimiCodec.load(FIXTURE)
    codec.save(tmp_path)
    assert codec.fingerprint and codec.codebook_sizes == (64,) * 8


def test_a_stream_of_codes_gives_the_audio_of_the_whole_clip(codec):
    codes = codec.encode([sounds()["buzz"]])[0]
    stream = streaming_decoder(codec)
    assert isinstance(stream, StreamingDecoder)
    parts = [stream.push(codes[:1]), stream.push(codes[1:1]), stream.push(codes[1:])]
    assert not len(stream.finish())
    np.testing.assert_allclose(np.concatenate(parts), codec.decode([codes])[0], atol=1e-5)


def test_codes_do_not_depend_on_frames_before_the_attention_window(codec):
    """Two positions per frame and two layers with a window of 30: 35 earlier frames have no influence."""
    rng = np.random.default_rng(3)
    far, near = rng.normal(size=(2, 20 * HOP)).astype(np.float32)
    rest = sounds()["buzz"][: 35 * HOP]
    one, other = codec.encode([np.concatenate([start, rest]) for start in (far, near)])
    assert (one[:20] != other[:20]).any() and (one[20:24] != other[20:24]).any()
    np.testing.assert_array_equal(one[-3:], other[-3:])


def test_codes_do_not_depend_on_later_audio(codec):
    voice = sounds()["buzz"]
    changed = voice.copy()
    changed[12 * HOP :] = sounds()["clipped noise"][12 * HOP :]
    one, other = codec.encode([voice, changed])
    np.testing.assert_array_equal(one[:12], other[:12])
    assert (one[12:] != other[12:]).any()


def test_a_long_clip_is_encoded_in_independent_pieces(codec):
    voice = np.concatenate([sounds(n)["buzz"] for n in range(2)])
    pieces = [voice[at : at + 15 * HOP] for at in range(0, len(voice), 15 * HOP)]
    separate = np.concatenate([codec.encode([piece])[0] for piece in pieces])
    np.testing.assert_array_equal(encode_long(codec, voice, 15 / 12.5), separate)


def test_codes_of_fewer_codebooks_are_decoded(codec):
    codes = codec.encode([sounds()["buzz"]])[0]
    assert codec.decode([codes[:, :1]])[0].shape == codec.decode([codes])[0].shape
    both = codec.decode([codes[:, :3], codes])
    np.testing.assert_array_equal(both[0], codec.decode([codes[:, :3]])[0])
    with pytest.raises(ValueError, match="outside codebook 2"):
        codec.decode([np.full((2, 3), [0, 0, 64])])


def test_most_codes_in_bfloat16_equal_those_in_float32(codec):
    half = MimiCodec.load(FIXTURE, dtype="bfloat16", batching=SMALL)
    clips = list(sounds().values())
    same = np.concatenate(
        [a == b for a, b in zip(half.encode(clips), codec.encode(clips), strict=True)]
    )
    assert 0.5 < same.mean() < 1  # a random model has many near ties
    assert half.fingerprint != codec.fingerprint


def test_default_settings_are_those_of_the_published_model():
    config = MimiConfig()
    assert (config.samples_per_frame, config.frame_rate) == (1920, 12.5)
    assert config == MimiConfig.from_json({"model_type": "mimi", "frame_rate": 12.5}, "here")
    assert config == MimiConfig.from_json(config.to_json(), "here")


def test_a_saved_codec_is_linked_and_loads_with_the_same_fingerprint(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGE", 1000)
    codec.save(tmp_path / "a")
    again = load_codec(f"mimi:{tmp_path / 'a'}")
    assert again.fingerprint == codec.fingerprint
    assert (tmp_path / "a/model.safetensors").stat().st_ino == (
        FIXTURE / "model.safetensors"
    ).stat().st_ino
    again.save(tmp_path / "a")  # onto itself
    fewer = MimiCodec.load(FIXTURE, codebooks=3)
    assert fewer.fingerprint != codec.fingerprint
    fewer.save(tmp_path / "b")
    assert load_codec(f"mimi:{tmp_path / 'b'}").codebook_sizes == (64,) * 3


def test_a_random_model_is_saved_in_the_published_layout(tmp_path):
    config = MimiConfig.from_json(json.loads((FIXTURE / "config.json").read_text()), "")
    one = MimiCodec.random(config, 0)
    assert MimiCodec.random(config, 1).fingerprint != one.fingerprint
    one.save(tmp_path)
    again = MimiCodec.load(tmp_path)
    assert again.fingerprint == one.fingerprint
    assert dataclasses.replace(again.config, num_quantizers=8) == config


def test_tensor_names_of_transformers_5_are_read(codec, tmp_path):
    from safetensors.numpy import load_file, save_file

    def nested(name: str) -> str:
        half, _, rest = name.partition(".")
        return {
            "encoder": f"encoder.encoder_seanet.{rest}",
            "encoder_transformer": f"encoder.encoder_transformer.{rest}",
            "decoder": f"decoder.decoder_seanet.{rest}",
            "decoder_transformer": f"decoder.decoder_transformer.{rest}",
            "downsample": f"encoder.downsample.{rest}",
            "upsample": f"decoder.upsample.{rest}",
        }.get(half, name)

    weights = load_file(FIXTURE / "model.safetensors")
    save_file({nested(k): v for k, v in weights.items()}, tmp_path / "model.safetensors")
    shutil.copy(FIXTURE / "config.json", tmp_path)
    assert MimiCodec.load(tmp_path).fingerprint == codec.fingerprint


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda b: b.replace(b'"mimi"', b'"encodec"'), "'encodec' model"),
        ("config.json", lambda b: b[:40], "is not a Mimi config"),
        ("config.json", lambda b: b.replace(b'"gelu"', b'"relu"'), "only gelu is supported"),
        ("config.json", lambda b: b.replace(b'dim": 16', b'dim": 8'), "only 8 is supported"),
        ("config.json", lambda b: b.replace(b'_size": 64', b'_size": 128'), "config.json requires"),
        ("config.json", None, "cannot be read"),
        ("model.safetensors", lambda b: b[:5000], "copy the model's folder again"),
        ("model.safetensors", lambda b: b.replace(b"downsample", b"downstairs"), "no tensor"),
        ("model.safetensors", None, "copy the model's folder again"),
        (
            "codec.json",
            lambda b: b.replace(b'"name": "mimi"', b'"name": "mel"'),
            "describes a 'mel' codec",
        ),
        ("codec.json", lambda b: b'{"format_version": 1}', "does not describe a mimi codec"),
        (
            "model.safetensors",
            lambda b: b[:-8] + b"\0\0\x80\x3f" * 2,
            "does not match the files",
        ),
    ],
)
def test_a_wrong_file_is_rejected_in_one_line_that_names_the_folder(
    codec, tmp_path, file, change, message
):
    codec.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if change:
        assert change(content) != content
        (tmp_path / file).write_bytes(change(content))
    with pytest.raises(UserError, match=message) as caught:
        load_codec(f"mimi:{tmp_path}")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_model_is_downloaded_only_for_a_hub_spec(monkeypatch):
    import huggingface_hub

    requests = []

    def download(name, revision, allow_patterns):
        requests.append((name, revision, sorted(allow_patterns)))
        if name == "who/what":
            raise OSError("no network\nand more")
        return str(FIXTURE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_codec("mimi:hf:kyutai/mimi@abc").codebook_sizes == (64,) * 8
    with pytest.raises(UserError, match=r"who/what cannot be downloaded .*no network\)"):
        load_codec("mimi:hf:who/what")
    with pytest.raises(UserError, match="kyutai/mimi"):
        load_codec("mimi:kyutai/mimi")  # a folder that does not exist
    files = ["config.json", "model.safetensors"]
    assert requests == [("kyutai/mimi", "abc", files), ("who/what", None, files)]


def test_unknown_codebooks_and_dtypes_are_rejected():
    with pytest.raises(UserError, match="8 codebooks, not 9"):
        MimiCodec.load(FIXTURE, codebooks=9)
    with pytest.raises(UserError, match="float16"):
        MimiCodec.load(FIXTURE, dtype="float16")
