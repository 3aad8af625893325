"""`soda codec fit`, `encode` and `decode`, as a user calls them."""

import argparse
import json

import numpy as np
import pytest
import soundfile
from codec_voices import syllables

from soda_jax.codecs import load_codec
from soda_jax.codecs.audio import read_audio, write_wav
from soda_jax.commands import codec as command
from soda_jax.errors import UserError


def soda_codec(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(4):
        write_wav(folder / "audio" / f"{i}.wav", syllables(3, i), 24_000)
    (folder / "audio" / "broken.flac").write_bytes(b"no flac")
    (folder / "audio" / "notes.txt").write_text("not audio")
    (folder / "audio" / "._0.wav").write_bytes(b"metadata of macOS")
    rows = [{"audio": f"audio/{i}.wav", "text": "la", "start": 0, "end": 2.5} for i in range(4)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


SMALL = ("--codebooks=2", "--codebook_size=16")


def test_fit_encode_decode_from_a_folder(corpus, tmp_path, capsys):
    assert soda_codec("fit", corpus / "audio", f"--output={tmp_path}/codec", *SMALL) == 0
    assert "1 of 5 clips could not be used" in capsys.readouterr().out
    spec = f"--codec=mel:{tmp_path}/codec"
    clip, codes, sound = corpus / "audio/2.wav", tmp_path / "codes.npz", tmp_path / "out.wav"
    assert soda_codec("encode", clip, spec, f"--output={codes}") == 0
    codec = load_codec(f"mel:{tmp_path}/codec")
    with np.load(codes, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["codes"], codec.encode([read_audio(clip, 24_000)])[0])
    assert soda_codec("decode", codes, spec, f"--output={sound}", "--codebooks=1") == 0
    assert soundfile.info(sound).frames == 38 * 1920
    with pytest.raises(UserError, match="must be from 1 to 2"):
        soda_codec("decode", codes, spec, f"--output={sound}", "--codebooks=3")
    with pytest.raises(UserError, match="not an output of soda codec encode"):
        soda_codec("decode", clip, spec, f"--output={sound}")


def test_codes_of_another_codec_are_rejected_with_both_fingerprints(corpus, tmp_path):
    for seed in (0, 1):
        soda_codec(
            "fit",
            corpus / "manifest.jsonl",
            f"--output={tmp_path}/{seed}",
            *SMALL,
            f"--seed={seed}",
        )
    codes = tmp_path / "codes.npz"
    soda_codec("encode", corpus / "audio/1.wav", f"--codec=mel:{tmp_path}/0", f"--output={codes}")
    with pytest.raises(UserError) as caught:
        soda_codec("decode", codes, f"--codec=mel:{tmp_path}/1", f"--output={tmp_path}/x.wav")
    for seed in (0, 1):
        assert load_codec(f"mel:{tmp_path}/{seed}").fingerprint in str(caught.value)
    assert not (tmp_path / "x.wav").exists()


def test_fit_on_too_little_audio_reports_the_minutes_that_it_needs(corpus, tmp_path, capsys):
    # 12 s are 150 frames: 20 for each of 7 entries.
    arguments = ("fit", corpus / "audio", "--codebooks=1", f"--output={tmp_path}/codec")
    soda_codec(*arguments, "--codebook_size=64")
    out = capsys.readouterr().out
    assert "warning: 0.2 minutes have 2.3 frames for each of 64 entries" in out
    assert "give at least 2 minutes, or --codebook_size=7" in out
    soda_codec(*arguments, "--codebook_size=7")
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(UserError):
        soda_codec(*arguments, "--codebook_size=512")
    assert "give at least 14 minutes" in capsys.readouterr().out


def test_fit_and_encode_read_a_flac_of_unknown_length(tmp_path):
    folder = tmp_path / "pipe"
    folder.mkdir()
    for i in range(4):
        soundfile.write(folder / f"{i}.flac", syllables(3, i), 24_000, subtype="PCM_16")
    soda_codec("fit", folder, f"--output={tmp_path}/a", *SMALL)
    for path in folder.iterdir():
        known = path.read_bytes()
        path.write_bytes(known[:21] + bytes([known[21] & 0xF0]) + bytes(20) + known[42:])
    soda_codec("fit", folder, f"--output={tmp_path}/b", *SMALL)
    one, two = (load_codec(f"mel:{tmp_path}/{name}") for name in "ab")
    assert one.fingerprint == two.fingerprint
    codes, spec = tmp_path / "codes.npz", f"--codec=mel:{tmp_path}/a"
    assert soda_codec("encode", folder / "1.flac", spec, f"--output={codes}") == 0
    with np.load(codes, allow_pickle=False) as file:
        assert len(file["codes"]) == 38


def test_fit_reports_missing_audio(corpus, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    output = f"--output={tmp_path}/codec"
    with pytest.raises(UserError, match="does not exist"):
        soda_codec("fit", tmp_path / "none", output)
    with pytest.raises(UserError, match="contains no sound files"):
        soda_codec("fit", empty, output)
    with pytest.raises(UserError, match="give more audio or smaller codebooks"):
        soda_codec("fit", corpus / "audio", output, "--max_minutes=0.1")
    assert not (tmp_path / "codec").exists()
