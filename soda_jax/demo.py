"""The whole path once, on synthetic speech: `soda demo`.

Each stage leaves files behind and is skipped when they are whole, so that a second run goes on
where the first one stopped.
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
_WATCH_SECONDS = 0.5


def run_demo(folder: str | Path, clips: int, steps: int = 0) -> Path:
    """Makes speech, fits the codec, tokenizes, trains, evaluates, generates, reports.

    Args:
      folder: everything goes there.
      clips: spoken utterances of the corpus.
      steps: training steps, 0 for those of `configs/demo.py`.

    Returns:
      The path of `report.html`.

    Raises:
      UserError: if a stage fails, or the folder holds a demo of other settings.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    _same_settings(
        home,
        {
            "clips": clips,
            "steps": steps,
            "codebook_size": CODEBOOK_SIZE,
            "configs/demo.py": _config_digest(),
        },
    )
    stages = _Stages(home / "stages.json")
    stages.run("speech and text", lambda: _synthesize(home, clips))
    stages.run("codec", lambda: _fit_codec(home))
    stages.run("tokenize", lambda: _tokenize(home))
    stages.run("train, stopped half-way and resumed", lambda: _train(home, steps))
    stages.run("evaluate", lambda: _evaluate(home))
    page = home / "report.html"
    if not page.exists():
        _report(home, stages)
    return page


def _config_digest() -> str:
    from soda_jax.configs import demo

    settings = json.dumps(demo.get_config().to_dict(), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def _same_settings(home: Path, settings: dict[str, Any]) -> None:
    path = home / "settings.json"
    if path.exists() and (before := json.loads(path.read_text("utf-8"))) != settings:
        raise UserError(f"{home} holds a demo of {before}, not {settings}: give another --output")
    write_json(path, settings)


class _Stages:
    """Runs stages and remembers how long each took when it was done."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = (
            json.loads(path.read_text("utf-8")) if path.exists() else {}
        )

    def run(self, name: str, work: Callable[[], None]) -> None:
        if name in self.seconds:
            print(f"== {name}: finished before, in {self.seconds[name]:.0f} s", file=sys.stderr)
            return
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        work()
        self.seconds[name] = time.monotonic() - began
        write_json(self._path, self.seconds)
        print(f"== {name}: {self.seconds[name]:.0f} s", file=sys.stderr, flush=True)


def _synthesize(home: Path, clips: int) -> None:
    from tokenize_pipeline.synthetic import synthesize

    synthesize(home / "corpus", "demo", clips, clips // 2, 0)


def _fit_codec(home: Path) -> None:
    _soda("codec", "fit", home / "corpus", f"--output={home}/codec",
          f"--codebook_size={CODEBOOK_SIZE}", "--max_minutes=20")  # fmt: skip


def _tokenize(home: Path) -> None:
    from tokenize_pipeline.job import tokenize
    from tokenize_pipeline.options import TokenizeOptions

    codec = f"mel:{home}/codec"
    corpus, held_out = home / "corpus", 0.04
    for name, file, form in (
        ("speech", "manifest.jsonl", "manifest"),
        ("text", "text.jsonl", "text"),
    ):
        options = TokenizeOptions(
            input=str(corpus / file),
            output=str(home / name),
            format=form,
            codec=codec,
            validation_fraction=held_out,
        )
        print(tokenize(options).describe(str(home / name)), file=sys.stderr)


def _soda(*arguments: Any, check: bool = True) -> int:
    """Runs a `soda` command as the user would; its progress goes to the same terminal."""
    command = [sys.executable, "-m", "soda_jax.cli", *map(str, arguments)]
    code = subprocess.run(command, check=False).returncode
    if check and code:
        raise UserError(f"soda {arguments[0]} failed with exit code {code}; its message is above")
    return code


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
    """Trains; the first process is asked to stop half-way, as a preempted one would be."""
    from soda_jax.checkpoints import CheckpointReader
    from soda_jax.train.loop import PREEMPTED

    command = _train_command(home, steps)
    if not CheckpointReader(home / "run" / "checkpoints").steps():
        process = subprocess.Popen([sys.executable, "-m", "soda_jax.cli", *command])
        try:
            _stop_half_way(process, home / "run")
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if code != PREEMPTED:
            raise UserError(f"soda train ended with exit code {code}, not {PREEMPTED}, on SIGTERM")
        print(f"stopped half-way with exit code {code}; going on", file=sys.stderr, flush=True)
    _soda(*command)


def _stop_half_way(process: "subprocess.Popen[bytes]", run: Path) -> None:
    """Sends SIGTERM once half of the steps are logged."""
    from soda_jax.train.metric_logs import FILE

    while process.poll() is None:
        time.sleep(_WATCH_SECONDS)
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
    write_json(home / "evaluation.json", evaluate(home / "run", options))


def _report(home: Path, stages: _Stages) -> None:
    """Generates the samples and writes the page."""
    import soda_jax
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.report.content import ReportContent
    from soda_jax.report.page import write_report
    from soda_jax.train.metric_logs import FILE, read_starts

    evaluation = json.loads((home / "evaluation.json").read_text("utf-8"))
    model = soda_jax.load(str(home / "run"))
    starts = read_starts(home / "run")
    speech, text = (Manifest.load(home / name) for name in ("speech", "text"))
    hours = speech.totals("train")["frames"] / model.codec.frame_rate / 3600
    run = f"--workdir={home}/run"
    content = ReportContent(
        title="SODA demo: a toy that listens and speaks",
        intro=(
            "A small decoder learned spoken digits and short commands of one synthetic voice from "
            "interleaved audio and text tokens, in minutes on a CPU. It is a toy: it shows that the "
            "whole path works, not how good a large model is. All scores are on held-out documents; "
            "with so small a vocabulary their sentences may also occur in training, spoken "
            "differently."
        ),
        stages=list(stages.seconds.items()),
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
            "steps": f"{model.step:,} of {starts[-1]['tokens_a_step']:,} tokens",
            "codec": f"mel, {model.codec.frame_rate} frames/s",
        },
        commands=[
            ("say something", f'soda generate {run} speak "four two" --output=four_two.wav'),
            ("write down a clip", f"soda generate {run} transcribe {home}/corpus/audio/000000.wav"),
            ("score the model", f"soda evaluate {run}"),
            (
                "train another size",
                f"soda {' '.join(_train_command(home, 3000))} --config.model.num_layers=6".replace(
                    f"{home}/run", f"{home}/run_6"
                ),
            ),
            ("look into the data", f"soda inspect {home}/speech"),
            ("a harder world", "see configs/numbers.py"),
        ],
        resumed_at=[start["step"] for start in starts if start["step"]],
        peak=f"{starts[-1]['peak_flops'] / 1e12:.3g} TFLOP/s, {starts[-1]['peak_source']}",
    )
    write_report(home / "report.html", content)


def _samples(home: Path, model: Any) -> list[Any]:
    """A sentence spoken, held-out clips written down and continued."""
    from soda_jax.evaluate.recognizer import NAME, Recognizer
    from soda_jax.evaluate.speech import held_out_utterances
    from soda_jax.report.content import Clip, Sample

    rate, judge = model.codec.sample_rate, Recognizer()
    held_out = held_out_utterances(model.metadata["data"], EVALUATED)
    # The longest few: the short ones are single words.
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
                clips=[Clip("the model's voice", speech.audio)],
                prompt_text=text,
                reference=text,
                result=judge.transcribe(speech.audio, rate) if len(speech.audio) else "",
                note=f"Heard by {NAME}."
                + ("" if speech.finished else " The length limit closed the utterance."),
            )
        )
    heard = model.transcribe_codes([item.utterance.codes for item in chosen])
    for item, clip, text in zip(chosen, clips, heard, strict=True):
        samples.append(
            Sample(
                kind="transcribe",
                title=f"Transcribe: held-out clip {item.name}",
                sample_rate=rate,
                clips=[Clip("the clip, through the codec", clip)],
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
            clips=[Clip("what it heard", half), Clip("what it added", rest.audio)],
            reference=first.text,
            result=judge.transcribe(np.concatenate([half, rest.audio]), rate),
            note=f"Heard by {NAME} in both parts together; the reference is what the whole clip said.",
        )
    )
    return samples
