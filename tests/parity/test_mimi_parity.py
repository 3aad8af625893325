"""Mimi compared with transformers: equal random weights and audio, code by code."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from mimi_sounds import HOP, first_differences, is_tie, sounds

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mimi_torch import SMALL, make_model  # noqa: E402, needs torch

from soda_jax.codecs.audio import read_audio  # noqa: E402
from soda_jax.codecs.mimi import MimiCodec  # noqa: E402
from soda_jax.codecs.mimi.streaming import StreamingEncoder  # noqa: E402
from tokenize_pipeline.synthetic import synthesize  # noqa: E402

CODEBOOKS = 8


@dataclasses.dataclass
class Pair:
    """A model in both implementations, and the codes of both for the same audio."""

    theirs: object
    ours: MimiCodec
    folder: str
    clips: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    found: dict[str, np.ndarray]


def spoken(count: int, folder: Path) -> list[np.ndarray]:
    """Returns spoken numbers and dates by hibari-tts, 24 kHz, zero-padded to whole frames."""
    synthesize(folder, "numbers", count, 0)
    files = sorted((folder / "audio").glob("*.wav"))[:count]
    clips = [read_audio(file, 24_000) for file in files]
    return [np.pad(clip, (0, -len(clip) % HOP)) for clip in clips]


def codes_of(model, clip: np.ndarray) -> np.ndarray:
    """Returns the codes of transformers, `[frames, 8]`."""
    with torch.no_grad():
        audio = torch.from_numpy(clip)[None, None]
        return model.encode(audio, num_quantizers=CODEBOOKS).audio_codes[0].T.numpy()


def make_pair(settings: dict, seed: int, home: Path, speech: int, repeats: int) -> Pair:
    clips = {f"speech {n}": clip for n, clip in enumerate(spoken(speech, home / "corpus"))}
    for number in range(repeats):
        made = sounds(100 * seed + number, 8.0)
        clips |= {f"{name} {number}": clip for name, clip in made.items()}
    # Longer than the window of the published transformer, 250 positions or 10 s.
    clips["long"] = sounds(100 * seed + 99, 25.0)["buzz"]
    model, folder = make_model(settings, seed, list(clips.values())), str(home / "mimi")
    model.save_pretrained(folder)
    ours = MimiCodec.load(folder)
    expected = {name: codes_of(model, clip) for name, clip in clips.items()}
    found = dict(zip(clips, ours.encode(list(clips.values())), strict=True))
    return Pair(model, ours, folder, clips, expected, found)


@pytest.fixture(scope="module", params=["small 0", "small 1", "small 2", "published 0"])
def pair(request, tmp_path_factory) -> Pair:
    shape, seed = request.param.split()
    folder = tmp_path_factory.mktemp("mimi")
    if shape == "small":
        return make_pair({**SMALL, "codebook_size": 256}, int(seed), folder, 20, 4)
    return make_pair({}, int(seed), folder, 90, 16)


def test_half_of_every_codebook_is_used(pair):
    codes = np.concatenate(list(pair.expected.values()))
    size = pair.ours.codebook_sizes[0]
    used = [len(np.unique(codes[:, book])) for book in range(CODEBOOKS)]
    assert min(used) >= size // 2, used


def test_codes_are_equal_except_for_ties(pair, capsys):
    """At least 99.9% in f32; each first difference is between two equally near entries, within 1e-4."""
    ours, theirs = (np.concatenate(list(codes.values())) for codes in (pair.found, pair.expected))
    share = (ours == theirs).mean()
    with capsys.disabled():
        print(f"\nMimi, {len(ours):,} frames: {100 * share:.3f}% of the codes equal transformers'")
    assert share >= 0.999
    quantizer = pair.theirs.quantizer
    chains = {
        0: quantizer.semantic_residual_vector_quantizer,
        1: quantizer.acoustic_residual_vector_quantizer,
    }
    for name, clip in pair.clips.items():
        for frame, book in first_differences(pair.found[name], pair.expected[name]):
            start = min(book, 1)
            chain = chains[start]
            with torch.no_grad():
                latents = pair.theirs.encoder(torch.from_numpy(clip)[None, None]).latents
                latent = chain.input_proj(latents)[0, :, frame].numpy()
            books = [layer.codebook.embed.numpy() for layer in chain.layers]
            codes = pair.expected[name][frame, start : book + 1]
            assert is_tie(latent, books, codes, pair.found[name][frame, book]), (name, frame, book)


def test_decoded_audio_is_equal(pair):
    for name in ("speech 0", "clipped noise 0", "silence 0"):
        codes = pair.expected[name]
        with torch.no_grad():
            theirs = pair.theirs.decode(torch.from_numpy(codes.T.copy())[None]).audio_values
        ours = pair.ours.decode([codes])[0]
        assert ours.std() > 1e-3
        np.testing.assert_allclose(ours, theirs[0, 0].numpy().clip(-1, 1), atol=1e-4)


def test_a_stream_gives_the_codes_of_the_whole_clip(pair):
    stream = StreamingEncoder(pair.ours)
    name = "speech 1"
    codes = np.concatenate([stream.push(pair.clips[name]), stream.finish()])
    assert (codes == pair.found[name]).mean() >= 0.999


def test_agreement_in_bfloat16_is_printed(pair, capsys):
    half = MimiCodec.load(pair.folder, dtype="bfloat16")
    names = [name for name in pair.clips if "speech" in name][:8]
    found = half.encode([pair.clips[name] for name in names])
    same = np.concatenate(
        [codes == pair.expected[name] for name, codes in zip(names, found, strict=True)]
    )
    by_book = " ".join(f"{100 * share:.0f}" for share in same.mean(0))
    with capsys.disabled():
        print(
            f"\nMimi in bfloat16, % of codes equal to transformers in f32, by codebook: {by_book}"
        )
    assert same[:, 0].mean() > 0.3  # of 256 or 512 entries: far from chance
