"""`soda generate`: speaks, transcribes or continues, one item or all rows of a manifest."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from soda_jax.commands._actions import add_action, add_number
from soda_jax.commands._mesh import add_mesh, parse_mesh

SUMMARY = "speak, transcribe, continue speech or text with a trained model"
EXAMPLE = 'soda generate --workdir=runs/demo speak "two eight" --output=out.wav'
_DEFAULTS = {"max_seconds": 15.0, "max_tokens": 448, "piece_characters": 200, "segment_seconds": 0.0,
             "pause_seconds": 0.2}  # fmt: skip
_SPEECH, _TEXT = (0.9, 0.8), (0.0, 1.0)  # temperature, top-p


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions; the model options may be given before or after the action."""
    _add_model(parser, None)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    speak = add_action(
        actions,
        "speak",
        "speak a text and write a WAV file",
        'soda generate --workdir=demo/run speak "one two three" --output=spoken.wav',
    )
    speak.add_argument("text", help="the text to speak")
    _add_output(speak)
    _add_voice(speak)
    _add_options(speak, _SPEECH, "max_seconds", "piece_characters", "pause_seconds")

    transcribe = add_action(
        actions,
        "transcribe",
        "transcribe sound files",
        "soda generate --workdir=demo/run transcribe spoken.wav",
    )
    transcribe.add_argument("clip", nargs="+", help="sound files")
    _add_options(transcribe, _TEXT, "max_tokens", "segment_seconds")

    go_on = add_action(
        actions,
        "continue",
        "continue a sound file and write a WAV file",
        "soda generate --workdir=demo/run continue spoken.wav --output=longer.wav",
    )
    go_on.add_argument("clip", help="a sound file")
    _add_output(go_on)
    go_on.add_argument(
        "--with_prompt", action="store_true", help="write the clip before its continuation"
    )
    _add_options(go_on, _SPEECH, "max_seconds")

    text = add_action(
        actions,
        "text",
        "continue a text",
        'soda generate --workdir=demo/run text "one two" --max_tokens=20',
    )
    text.add_argument("text", help="the text to continue")
    _add_options(text, _SPEECH, "max_tokens")

    batch = add_action(
        actions,
        "batch",
        "run a task on the rows of a manifest; an interrupted run continues",
        "soda generate --workdir=demo/run batch --task=speak --input=texts.tsv --output=spoken",
    )
    batch.add_argument(
        "--task", required=True, help="speak, transcribe, continue, text, or a registered task"
    )
    batch.add_argument(
        "--input", required=True, help="manifest, FILE.jsonl or FILE.tsv, see docs/generate.md"
    )
    batch.add_argument("--output", required=True, help="folder for results.jsonl and WAV files")
    _add_voice(batch)
    _add_options(batch, None, *_DEFAULTS)

    for action in (speak, transcribe, batch):
        action.add_argument(
            "--examples", help="manifest with audio and text: examples before each prompt"
        )
    for action in (speak, transcribe, go_on, text, batch):
        _add_model(action, argparse.SUPPRESS)


def _add_model(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--workdir", default=default, help="folder of the run")
    parser.add_argument(
        "--step", type=int, default=default, help="step (default: the newest valid one)"
    )
    parser.add_argument(
        "--codec", default=default, help="codec such as mel:DIR (default: WORKDIR/codec)"
    )
    parser.add_argument(
        "--dtype",
        default=default,
        help="dtype of the weights: float32, bfloat16 or int8 (default: float32 on a CPU, else bfloat16)",
    )
    add_mesh(parser, default)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", required=True, help="WAV file; - pipes 16-bit PCM to stdout, as with --stream"
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="write audio while it is generated; print the time to the first audio",
    )


def _add_voice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", help="sound file with the voice to use")
    parser.add_argument("--voice_text", help="transcript of --voice")


def _add_options(
    parser: argparse.ArgumentParser, sampling: tuple[float, float] | None, *names: str
) -> None:
    meanings = {
        "max_seconds": "maximum seconds of each generated utterance",
        "max_tokens": "maximum number of text tokens",
        "piece_characters": "a longer text is spoken in pieces, shorter ones if the context is short; 0 = never",
        "segment_seconds": "a longer recording is cut at pauses; 0 = what fits into the context",
        "pause_seconds": "silence between spoken pieces",
    }
    for name in names:
        add_number(parser, f"--{name}", _DEFAULTS[name], meanings[name])
    if sampling is None:  # the defaults depend on the task
        for name, meaning in (
            ("temperature", "0 = greedy"),
            ("top_p", "probability mass; 1 = all"),
        ):
            parser.add_argument(f"--{name}", type=float, help=f"{meaning} (that of the task)")
    else:
        add_number(parser, "--temperature", sampling[0], "sampling temperature; 0 = greedy")
        add_number(parser, "--top_p", sampling[1], "probability mass to sample from; 1 = all")
    add_number(parser, "--top_k", 0, "sample from the k most likely tokens; 0 = all")
    add_number(parser, "--seed", 0, "random seed")
    add_number(parser, "--best_of", 1, "candidates, of which the most likely is kept")
    parser.add_argument(
        "--unconstrained",
        action="store_true",
        help="sample without the grammar, and report what the grammar changes",
    )


def run(args: argparse.Namespace) -> int:
    """Checks the options, loads the model and runs the action."""
    from soda_jax.errors import UserError

    if not args.workdir:
        raise UserError("give the run's folder as --workdir=DIR")
    if args.seed < 0 or args.seed >= 1 << 32:
        raise UserError(f"--seed={args.seed} must be from 0 to 4,294,967,295")
    if bool(getattr(args, "voice", None)) != bool(getattr(args, "voice_text", None)):
        raise UserError(
            "--voice and --voice_text must be used together: give the sound file and its transcript"
        )
    streams = getattr(args, "stream", False) or getattr(args, "output", "") == "-"
    if streams and (args.best_of > 1 or args.unconstrained):
        raise UserError("--stream cannot be used with --best_of or --unconstrained")

    from soda_jax.files import check_output
    from soda_jax.generate.batch import BatchOptions, read_examples, read_manifest, run_batch
    from soda_jax.generate.pipeline import check_best_of, find_task
    from soda_jax.generate.sampling import Sampling
    from soda_jax.generate.speech_model import load
    from soda_jax.generate.tasks import TaskOptions
    from soda_jax.model.decoding import check_dtype
    from soda_jax.train.program import use_compilation_cache

    name = args.task if args.action == "batch" else args.action
    kind = find_task(name)
    if getattr(args, "voice", None) and "voice" not in kind.takes:
        raise UserError(f"--voice: the task {name} takes no voice")
    if getattr(args, "examples", None) and "examples" not in kind.options:
        raise UserError(f"--examples: the task {name} takes no examples")
    sampling = Sampling(
        kind.sampling.temperature if args.temperature is None else args.temperature,
        args.top_k,
        kind.sampling.top_p if args.top_p is None else args.top_p,
    )
    check_best_of(args.best_of, sampling)
    examples = read_examples(args.examples) if getattr(args, "examples", None) else ()
    chosen: dict[str, Any] = {key: getattr(args, key, value) for key, value in _DEFAULTS.items()}
    options = TaskOptions(**chosen, examples=examples)
    check_dtype(args.dtype or "float32")
    mesh = parse_mesh(args.mesh)
    batch = BatchOptions(name, options, sampling, args.seed, args.best_of, not args.unconstrained)
    voice = (args.voice, args.voice_text) if getattr(args, "voice", None) else (None, "")
    if args.action == "batch":
        requests = read_manifest(args.input, name, voice)
    elif getattr(args, "output", "-") != "-":
        check_output(args.output, "--output")
    use_compilation_cache()
    model = load(
        args.workdir, step=args.step, codec=args.codec or "", dtype=args.dtype or "", mesh=mesh
    ).for_decoding()
    if args.action != "batch":
        return _run_single(model, args, batch, voice, streams)
    summary = run_batch(model, requests, args.output, batch)
    print("\n".join(summary.lines()))
    print(f"written to {args.output}")
    return 1 if summary.failed else 0


def _run_single(
    model: Any, args: argparse.Namespace, batch: Any, voice: tuple[Any, str], streams: bool
) -> int:
    """Runs the task on the arguments of the command."""
    from soda_jax.errors import UserError
    from soda_jax.generate.pipeline import Pipeline
    from soda_jax.generate.tasks import Request

    if args.action == "transcribe":
        # The names differ, also if a file is given twice.
        requests = [Request(f"{n}", audio=clip) for n, clip in enumerate(args.clip)]
    elif args.action == "continue":
        from soda_jax.codecs.audio import read_audio

        prompt = read_audio(args.clip, model.codec.sample_rate)
        requests = [Request("0", audio=prompt)]
    else:
        requests = [Request("0", args.text, voice=voice[0], voice_text=voice[1])]
    if streams:
        before = prompt if args.action == "continue" and args.with_prompt else None
        return _stream(model, args, batch, requests[0], before)

    def generated(constrained: bool) -> list[Any]:
        pipeline = Pipeline(
            model, batch.task, batch.options, sampling=batch.sampling, seed=batch.seed,
            best_of=batch.best_of, constrained=constrained,
        )  # fmt: skip
        found = {request.name: result for request, result in pipeline.run(requests)}
        return [found[request.name] for request in requests]

    results = generated(batch.constrained)
    done = [result for result in results if not isinstance(result, UserError)]
    if not batch.constrained and done:
        compared = [r for r in generated(True) if not isinstance(r, UserError)]
        shares = [sum(map(bool, some)) / len(some) for some in (
            [r.legal for r in done], [r.finished for r in done], [r.finished for r in compared],
        )]  # fmt: skip
        print(
            f"without the grammar {shares[0]:.0%} legal and {shares[1]:.0%} ended by the model; with it "
            f"{shares[2]:.0%} ended",
            file=sys.stderr,
        )
    if args.action == "transcribe":
        return _print_transcripts(args, results)
    (result,) = results
    if isinstance(result, UserError):
        raise result
    if args.action == "text":
        print(args.text + result.text)
        if not result.finished:
            print(_cut(args, result), file=sys.stderr)
        return 0
    from soda_jax.codecs.audio import write_wav

    audio = result.audio
    if args.action == "continue" and args.with_prompt:
        import numpy as np

        audio = np.concatenate([prompt, audio])
    if not len(audio):
        raise UserError("the generated audio is empty, so no file is written: try another --seed")
    write_wav(args.output, audio, model.codec.sample_rate)
    note = "" if result.finished else f", {_cut(args, result)}"
    print(f"{args.output}: {len(audio) / model.codec.sample_rate:.2f} s{note}")
    return 0


def _cut(args: argparse.Namespace, result: Any) -> str:
    """Returns why the model did not end a result."""
    if not result.legal:
        return "cut before its first illegal token"
    if args.action in ("transcribe", "text"):
        return f"cut at --max_tokens={args.max_tokens} or at the end of the context"
    return f"cut at --max_seconds={args.max_seconds:g} or at the end of the context"


def _print_transcripts(args: argparse.Namespace, results: list[Any]) -> int:
    """Prints a line for each clip, and for a long one a line for each segment with its times."""
    from soda_jax.errors import UserError

    failed = 0
    for clip, result in zip(args.clip, results, strict=True):
        if isinstance(result, UserError):
            named = str(result) if str(result).startswith(clip) else f"{clip}: {result}"
            if len(args.clip) == 1:
                raise UserError(named)
            print(named, file=sys.stderr)
            failed += 1
            continue
        print(result.text if len(args.clip) == 1 else f"{clip}: {result.text}")
        if len(result.parts) > 1:
            for part in result.parts:
                print(f"  {part.start:8.2f} to {part.end:8.2f} s  {part.text.strip()}")
        if not result.finished:
            print(f"{clip}: {_cut(args, result)}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(results)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _stream(model: Any, args: argparse.Namespace, batch: Any, request: Any, before: Any) -> int:
    """Writes audio while it is generated, and prints the time to the first audio."""
    from soda_jax.generate.pipeline import Pipeline, streaming_steps
    from soda_jax.generate.streaming import SpeechStream

    began, rate = time.monotonic(), model.codec.sample_rate
    first: list[float] = []
    samples = 0
    with _sink(args.output, rate) as write:
        if before is not None:
            write(before)
            samples += len(before)

        def on_tokens(prompt: Any, ids: Any, ended: bool) -> None:
            nonlocal samples
            audio = stream.push(prompt.piece, ids, ended)
            if len(audio):
                write(audio)
                first.append(time.monotonic() - began)
                samples += len(audio)

        pipeline = Pipeline(
            model, batch.task, batch.options, sampling=batch.sampling, seed=batch.seed,
            steps=streaming_steps(model), on_tokens=on_tokens,
        )  # fmt: skip
        stream = SpeechStream(pipeline.context)
        (result,) = pipeline([request])
    note = "" if result.finished else f", {_cut(args, result)}"
    lasted, seconds = time.monotonic() - began, samples / rate
    started = f"first audio after {first[0]:.2f} s, " if first else "no audio, "
    print(
        f"{args.output}: {seconds:.2f} s{note}; {started}all after {lasted:.2f} s, compilation included",
        file=sys.stderr,
    )
    return 0


@contextlib.contextmanager
def _sink(output: str, sample_rate: int) -> Iterator[Callable[[Any], None]]:
    """Yields a function that writes f32 mono `[samples]` to a WAV file, or with `-` as PCM to stdout."""
    from soda_jax.codecs.audio import pcm16, streamed_wav

    if output != "-":
        with streamed_wav(output, sample_rate) as write:
            yield write
        return

    def pipe(audio: Any) -> None:
        sys.stdout.buffer.write(pcm16(audio))
        sys.stdout.buffer.flush()

    print(f"PCM: 16-bit little-endian, mono, {sample_rate} Hz", file=sys.stderr)
    yield pipe
