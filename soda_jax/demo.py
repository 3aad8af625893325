"""Implements `soda demo`, which runs all stages of the project on synthetic speech.

`stages.json` lists the finished stages. They are skipped, so an interrupted demo can be continued.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_json

CODEBOOK_SIZE = 256
EVALUATED = 64  # held-out utterances
SHOWN = 3
LONGEST_SECONDS = 3.0
_POLL_SECONDS = 0.5
_CLI = (sys.executable, "-m", "soda_jax.cli")


def run_demo(folder: str | Path, clips: int, steps: int = 0) -> Path:
    """Runs all stages that are not finished, from synthesis to evaluation, and writes the report.

    Args:
      folder: folder for all output files.
      clips: number of spoken utterances in the corpus.
      steps: number of training steps (0 = the number in `configs/demo.py`).

    Returns:
      The path of `report.html`.

    Raises:
      UserError: if a stage fails, or the folder contains a demo with other settings.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    _check_settings(home, clips, steps)
    path = home / "stages.json"
    seconds: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    stages: dict[str, Callable[[], None]] = {
        "speech and text": lambda: _synthesize(home, clips),
        "codec": lambda: _fit_codec(home),
        "tokenize": lambda: _tokenize(home),
        "train, stopped half-way and resumed": lambda: _train(home, steps),
        "evaluate": lambda: _evaluate(home),
    }
    for name, work in stages.items():
        if name in seconds:
            print(f"== {name}: finished earlier, in {seconds[name]:.0f} s", file=sys.stderr)
            continue
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        work()
        seconds[name] = time.monotonic() - start
        write_json(path, seconds)
        print(f"== {name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    page = home / "report.html"
    if not page.exists():
        _report(home, seconds)
    return page


def _check_settings(home: Path, clips: int, steps: int) -> None:
    from soda_jax.configs import demo

    config = json.dumps(demo.get_config().to_dict(), sort_keys=True)
    settings = {
        "clips": clips,
        "steps": steps,
        "codebook_size": CODEBOOK_SIZE,
        "configs/demo.py": hashlib.sha256(config.encode()).hexdigest()[:12],
    }
    path = home / "settings.json"
    if path.exists() and (before := json.loads(path.read_text("utf-8"))) != settings:
        raise UserError(
            f"{home} contains a demo with {before}, not {settings}: give another --output"
        )
    write_json(path, settings)


def _synthesize(home: Path, clips: int) -> None:
    from tokenize_pipeline.synthetic import synthesize

    synthesize(home / "corpus", "demo", clips, clips // 2, 0)


def _fit_codec(home: Path) -> None:
    _soda("codec", "fit", home / "corpus", f"--output={home}/codec",
          f"--codebook_size={CODEBOOK_SIZE}", "--max_minutes=20")  # fmt: skip


def _tokenize(home: Path) -> None:
    from tokenize_pipeline.job import tokenize
    from tokenize_pipeline.options import TokenizeOptions

    for name, file, reader in (
        ("speech", "manifest.jsonl", "manifest"),
        ("text", "text.jsonl", "text"),
    ):
        options = TokenizeOptions(
            input=str(home / "corpus" / file),
            output=str(home / name),
            format=reader,
            codec=f"mel:{home}/codec",
            validation_fraction=0.04,
        )
        print(tokenize(options).describe(str(home / name)), file=sys.stderr)


def _soda(*arguments: Any) -> None:
    """Runs a `soda` command in a child process, which writes to the same terminal."""
    code = subprocess.run([*_CLI, *map(str, arguments)], check=False).returncode
    if code:
        raise UserError(f"soda {arguments[0]} failed with exit code {code}; its message is above")


def _train_command(home: Path, steps: int) -> list[str]:
    command = [
        "train",
        "--config=configs/demo.py",
        f"--workdir={home}/run",
        f"--config.data.sources.speech.path={home}/speech",
        f"--config.data.sources.semantic.path={home}/speech",
        f"--config.data.sources.text.path={home}/text",
    ]
    return command + ([f"--config.steps={steps}"] if steps else [])


def _train(home: Path, steps: int) -> None:
    """Trains in a process that is preempted half-way, then resumes in a second process."""
    from soda_jax.checkpoints import CheckpointReader
    from soda_jax.train.loop import PREEMPTED

    command = _train_command(home, steps)
    if not CheckpointReader(home / "run" / "checkpoints").steps():
        process = subprocess.Popen([*_CLI, *command])
        try:
            _stop_half_way(process, home / "run")
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if code != PREEMPTED:
            raise UserError(f"soda train ended with exit code {code}, not {PREEMPTED}, on SIGTERM")
        print(f"stopped half-way with exit code {code}; resuming", file=sys.stderr, flush=True)
    _soda(*command)


def _stop_half_way(process: "subprocess.Popen[bytes]", run: Path) -> None:
    """Sends SIGTERM to the training process when half of the steps are logged."""
    from soda_jax.train.metric_logs import FILE

    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        metrics, config = run / FILE, run / "config.json"
        if not metrics.exists() or not config.exists():
            continue
        half = json.loads(config.read_text("utf-8"))["steps"] // 2
        with metrics.open("rb") as file:
            done = sum(1 for _ in file)
        if done >= half:
            process.send_signal(signal.SIGTERM)
            return


def _evaluate(home: Path) -> None:
    from soda_jax.evaluate.evaluators import EvaluationOptions, evaluate

    options = EvaluationOptions(limit=EVALUATED, max_seconds=LONGEST_SECONDS)
    write_json(home / "run" / "evaluation.json", evaluate(home / "run", options))


def _report(home: Path, seconds: dict[str, float]) -> None:
    """Generates samples and writes `report.html`; `seconds` has the duration of each stage."""
    import soda_jax
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.report.content import ReportContent
    from soda_jax.report.page import write_report
    from soda_jax.train.metric_logs import FILE, read_starts

    evaluation = json.loads((home / "run" / "evaluation.json").read_text("utf-8"))
    model = soda_jax.load(str(home / "run"))
    starts = read_starts(home / "run")
    speech, text = (Manifest.load(home / name) for name in ("speech", "text"))
    hours = speech.totals("train")["frames"] / model.codec.frame_rate / 3600
    run = f"--workdir={home}/run"
    content = ReportContent(
        title="SODA demo: a toy model that transcribes and speaks",
        intro=(
            "A small decoder learned spoken digits and short commands of one synthetic voice from "
            "interleaved audio and text tokens, in minutes on a CPU. It is a toy: it shows that all "
            "stages work, not how good a large model is. All scores are on held-out documents. As the "
            "vocabulary is small, the training data may contain the same sentences, spoken differently."
        ),
        stages=list(seconds.items()),
        metrics=home / "run" / FILE,
        evaluation=evaluation,
        samples=_samples(home, model),
        facts={
            "parameters": f"{starts[-1]['parameters']:,}",
            "devices": starts[-1]["devices"],
            "speech": f"{hours:.2f} hours, {speech.totals('train')['utterances']:,} utterances",
            "text": f"{text.totals('train')['text_tokens']:,} tokens",
            "vocabulary": f"{model.layout.size:,} ids: {model.layout.text_size} text, 4 markers, "
            f"{model.layout.codebooks} codebooks of {CODEBOOK_SIZE}",
            "steps": f"{model.step:,}, {starts[-1]['tokens_per_step']:,} tokens each",
            "codec": f"mel, {model.codec.frame_rate} frames/s",
        },
        commands=[
            ("speak a sentence", f'soda generate {run} speak "four two" --output=four_two.wav'),
            ("transcribe a clip", f"soda generate {run} transcribe {home}/corpus/audio/000000.wav"),
            ("evaluate the model", f"soda evaluate {run}"),
            (
                "train another size",
                f"soda {' '.join(_train_command(home, 3000))} --config.model.num_layers=6".replace(
                    f"{home}/run", f"{home}/run_6"
                ),
            ),
            ("inspect the data", f"soda inspect {home}/speech"),
            ("train on a larger vocabulary", "see configs/numbers.py"),
        ],
        resumed_at=[start["step"] for start in starts if start["step"]],
        peak=f"{starts[-1]['peak_flops'] / 1e12:.3g} TFLOP/s, {starts[-1]['peak_source']}",
    )
    write_report(home / "report.html", content)


def _samples(home: Path, model: Any) -> list[Any]:
    """Returns samples for the report: speech, transcripts of held-out clips, and a continuation."""
    from soda_jax.evaluate.recognizer import load_recognizer
    from soda_jax.evaluate.speech import held_out_utterances
    from soda_jax.report.content import Clip, Sample

    rate, judge = model.codec.sample_rate, load_recognizer()
    held_out = held_out_utterances(model.metadata["data"], EVALUATED)
    # The longest utterances, because short ones are single words.
    chosen = sorted(held_out, key=lambda item: -len(item.utterance.text))[:SHOWN]
    clips = [model.codec.decode([item.utterance.codes])[0] for item in chosen]
    samples = []
    texts = ["four two", "turn left", chosen[0].utterance.text]
    for text, speech in zip(texts, model.speak(texts, max_seconds=LONGEST_SECONDS), strict=True):
        speech.save(home / "samples" / f"speak_{text.replace(' ', '_')}.wav")
        samples.append(
            Sample(
                kind="speak",
                title=f"Speak: {text}",
                sample_rate=rate,
                clips=[Clip("generated speech", speech.audio)],
                prompt_text=text,
                reference=text,
                result=judge.transcribe(speech.audio, rate) if len(speech.audio) else "",
                note=f"Transcribed by {judge.name}."
                + ("" if speech.finished else " The length limit ended the utterance."),
            )
        )
    transcripts = model.transcribe_codes([item.utterance.codes for item in chosen])
    for item, clip, text in zip(chosen, clips, transcripts, strict=True):
        samples.append(
            Sample(
                kind="transcribe",
                title=f"Transcribe: held-out clip {item.name}",
                sample_rate=rate,
                clips=[Clip("the clip, decoded by the codec", clip)],
                reference=item.utterance.text,
                result=text,
            )
        )
    first = chosen[0].utterance
    half = clips[0][: len(clips[0]) // 2]
    half = half[: len(half) // model.codec.samples_per_frame * model.codec.samples_per_frame]
    rest = model.continue_audio(np.asarray(half), max_seconds=LONGEST_SECONDS)
    samples.append(
        Sample(
            kind="continue",
            title="Continue: the first half of a held-out clip",
            sample_rate=rate,
            clips=[Clip("prompt", half), Clip("continuation", rest.audio)],
            reference=first.text,
            result=judge.transcribe(np.concatenate([half, rest.audio]), rate),
            note=f"Prompt and continuation transcribed together by {judge.name}; the reference is the "
            "transcript of the whole clip.",
        )
    )
    return samples
