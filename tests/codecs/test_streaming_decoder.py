"""Codes are decoded to audio while they arrive, with any codec."""

import numpy as np
import pytest

from soda_jax.codecs.mel import MelCodec, MelSettings
from soda_jax.codecs.streaming import OverlappingDecoder, streaming_decoder


@pytest.fixture(scope="module")
def mel() -> MelCodec:
    rng = np.random.default_rng(0)
    clips = [np.sin(np.cumsum(rng.uniform(0.02, 0.3, 24_000))).astype(np.float32) for _ in range(4)]
    settings = MelSettings(components=16, codebook_sizes=(16, 16), griffin_lim_iterations=8)
    return MelCodec.fit(clips, settings)


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("parts", [[25], [1] * 25, [0, 7, 0, 11, 7]])
def test_pieces_have_the_length_and_the_level_of_the_whole(mel, frames, parts):
    codes = np.random.default_rng(1).integers(0, 16, (25, 2))
    stream = OverlappingDecoder(mel, frames)
    audio, at = [], 0
    for count in parts:
        audio.append(stream.push(codes[at : at + count]))
        at += count
    assert sum(map(len, audio)) <= 24 * mel.samples_per_frame  # the last frame may change a joint
    audio = np.concatenate([*audio, stream.finish()])
    whole = mel.decode([codes])[0]
    assert audio.shape == whole.shape and audio.dtype == np.float32
    frame = mel.samples_per_frame
    ours, expected = (np.sqrt(np.mean(a.reshape(-1, frame) ** 2, axis=1)) for a in (audio, whole))
    assert np.median(np.abs(20 * np.log10(ours / expected))) < 3


def test_joints_have_no_jump(mel):
    codes = np.tile([[3, 5]], (24, 1))
    stream = OverlappingDecoder(mel, 2)
    audio = np.concatenate([stream.push(codes), stream.finish()])
    jumps, whole = np.abs(np.diff(audio)), np.abs(np.diff(mel.decode([codes])[0]))
    assert jumps.max() <= 2 * whole.max()


def test_an_empty_stream_has_no_audio(mel):
    stream = streaming_decoder(mel)
    assert isinstance(stream, OverlappingDecoder)
    assert len(stream.push(np.zeros((0, 2), int))) == len(stream.finish()) == 0
    with pytest.raises(ValueError, match="at least 1 frame"):
        OverlappingDecoder(mel, 0)
