"""`soda generate`: speaks a text, transcribes sound files or continues a sound file."""

import argparse
import sys
from typing import Any

from soda_jax.commands._actions import add_action, add_number
from soda_jax.commands._mesh import add_mesh, parse_mesh

SUMMARY = "speak, transcribe or continue speech with a trained model"
EXAMPLE = 'soda generate --workdir=runs/demo speak "two eight" --output=out.wav'


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
    speak.add_argument("--output", required=True, help="WAV file")
    speak.add_argument("--voice", help="sound file with the voice to use")
    speak.add_argument("--voice_text", help="transcript of --voice")

    transcribe = add_action(
        actions,
        "transcribe",
        "transcribe sound files",
        "soda generate --workdir=demo/run transcribe spoken.wav",
    )
    transcribe.add_argument("clip", nargs="+", help="sound files")
    add_number(transcribe, "--max_tokens", 448, "maximum number of text tokens")

    go_on = add_action(
        actions,
        "continue",
        "continue a sound file and write a WAV file",
        "soda generate --workdir=demo/run continue spoken.wav --output=longer.wav",
    )
    go_on.add_argument("clip", help="a sound file")
    go_on.add_argument("--output", required=True, help="WAV file")
    go_on.add_argument(
        "--with_prompt", action="store_true", help="write the clip before its continuation"
    )

    for action in (speak, go_on):
        add_number(action, "--max_seconds", 15.0, "maximum seconds of new audio")
        _add_sampling(action, temperature=0.9, top_p=0.8)
    _add_sampling(transcribe, temperature=0.0, top_p=1.0)
    for action in (speak, transcribe, go_on):
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


def _add_sampling(parser: argparse.ArgumentParser, temperature: float, top_p: float) -> None:
    add_number(parser, "--temperature", temperature, "sampling temperature; 0 = greedy")
    add_number(parser, "--top_k", 0, "sample from the k most likely tokens; 0 = all")
    add_number(parser, "--top_p", top_p, "probability mass to sample from; 1 = all")
    add_number(parser, "--seed", 0, "random seed")


def run(args: argparse.Namespace) -> int:
    """Checks the options, loads the model and runs the action."""
    from soda_jax.errors import UserError

    if not args.workdir:
        raise UserError("give the run's folder as --workdir=DIR")
    if args.seed < 0 or args.seed >= 1 << 32:
        raise UserError(f"--seed={args.seed} must be from 0 to 4,294,967,295")
    if args.action == "transcribe":
        if args.max_tokens < 1:
            raise UserError(f"--max_tokens={args.max_tokens} must be at least 1")
    elif not 0 < args.max_seconds < float("inf"):
        raise UserError(f"--max_seconds={args.max_seconds} must be more than 0 and finite")
    if args.action == "speak" and bool(args.voice) != bool(args.voice_text):
        raise UserError(
            "--voice and --voice_text must be used together: give the sound file and its transcript"
        )

    from soda_jax.generate.sampling import Sampling
    from soda_jax.generate.speech_model import load
    from soda_jax.model.decoding import check_dtype
    from soda_jax.train.program import use_compilation_cache

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    check_dtype(args.dtype or "float32")
    mesh = parse_mesh(args.mesh)
    use_compilation_cache()
    model = load(
        args.workdir, step=args.step, codec=args.codec or "", dtype=args.dtype or "", mesh=mesh
    )
    actions = {"speak": _speak, "transcribe": _transcribe, "continue": _continue}
    actions[args.action](model, args, sampling)
    return 0


def _speak(model: Any, args: argparse.Namespace, sampling: Any) -> None:
    voice = (args.voice, args.voice_text) if args.voice else None
    speech = model.speak(
        args.text,
        voice=voice,
        max_seconds=args.max_seconds,
        sampling=sampling,
        seed=args.seed,
    )
    _write(args, speech.audio, speech)


def _transcribe(model: Any, args: argparse.Namespace, sampling: Any) -> None:
    prompts = [model.audio_prompt(codes) for codes in model.encode(args.clip)]
    found = model.transcribe_prompts(
        prompts, max_tokens=args.max_tokens, sampling=sampling, seed=args.seed
    )
    for clip, (text, finished) in zip(args.clip, found, strict=True):
        print(text if len(args.clip) == 1 else f"{clip}: {text}")
        if not finished:
            print(f"{clip}: cut at --max_tokens={args.max_tokens}", file=sys.stderr)


def _continue(model: Any, args: argparse.Namespace, sampling: Any) -> None:
    import numpy as np

    from soda_jax.codecs.audio import read_audio

    prompt = read_audio(args.clip, model.codec.sample_rate)
    speech = model.continue_audio(
        prompt, max_seconds=args.max_seconds, sampling=sampling, seed=args.seed
    )
    audio = np.concatenate([prompt, speech.audio]) if args.with_prompt else speech.audio
    if not len(audio):
        print("the continuation is empty, so no file is written: try another --seed")
        return
    _write(args, audio, speech)


def _write(args: argparse.Namespace, audio: Any, speech: Any) -> None:
    from soda_jax.codecs.audio import write_wav

    write_wav(args.output, audio, speech.sample_rate)
    note = "" if speech.finished else f", cut at --max_seconds={args.max_seconds:g}"
    print(f"{args.output}: {len(audio) / speech.sample_rate:.2f} s{note}")
