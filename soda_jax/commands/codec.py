"""`soda codec`: fits codecs, encodes sound files and decodes codes."""

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from soda_jax.commands._actions import add_action, add_number
from soda_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from soda_jax.codecs.interface import Codec

SUMMARY = "fit a codec; encode and decode a sound file"
EXAMPLE = "soda codec fit corpus/manifest.jsonl --output=codec"

# Suffixes that differ from the name of the format in soundfile.
_OTHER_SUFFIXES = {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}
_FRAMES_PER_ENTRY = 20  # minimum for k-means, from measurements in docs/codec.md
Clip = tuple[Path, float | None, float | None]  # path, start and end in seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True)

    fit = add_action(
        actions,
        "fit",
        "fit the mel codec on your audio",
        "soda codec fit corpus/manifest.jsonl --output=codec",
    )
    _add_audio(fit)
    add_number(fit, "--codebooks", 8, "number of codebooks")
    add_number(fit, "--codebook_size", 512, "entries per codebook")

    units = add_action(
        actions,
        "fit-units",
        "fit the semantic units of the two-encoder codec",
        "soda codec fit-units corpus/manifest.jsonl --hubert=hubert --output=codec",
    )
    _add_audio(units)
    units.add_argument("--hubert", required=True, help="HuBERT: folder or hub name")
    units.add_argument(
        "--encodec",
        default="facebook/encodec_24khz",
        help="EnCodec: folder or hub name (%(default)s)",
    )
    add_number(units, "--layer", 9, "HuBERT layer, counted from 1")
    add_number(units, "--units", 500, "number of units")
    add_number(units, "--quantizers", 2, "EnCodec quantizers to use")

    encode = add_action(
        actions,
        "encode",
        "encode a sound file",
        "soda codec encode clip.wav --codec=mel:codec --output=codes.npz",
    )
    encode.add_argument("file", help="a sound file")
    encode.add_argument("--codec", required=True, help="mel:DIR, mimi:DIR or two_encoder:DIR")
    encode.add_argument("--output", required=True, help="file for the codes, .npz")

    decode = add_action(
        actions,
        "decode",
        "decode codes to a sound file",
        "soda codec decode codes.npz --codec=mel:codec --output=again.wav",
    )
    decode.add_argument("file", help="file written by soda codec encode")
    decode.add_argument("--codec", required=True, help="the codec that encoded the file")
    decode.add_argument("--output", required=True, help="sound file, .wav")
    decode.add_argument("--codebooks", type=int, help="number of codebooks to use (default: all)")


def _add_audio(fit: argparse.ArgumentParser) -> None:
    """Adds the options that `fit` and `fit-units` share."""
    fit.add_argument("audio", help="a folder of sound files, or a manifest (.jsonl, .csv)")
    fit.add_argument("--output", required=True, help="folder for the codec")
    add_number(fit, "--max_minutes", 30.0, "maximum minutes of audio, from randomly chosen clips")
    add_number(fit, "--seed", 0, "seed of the random clips and of k-means")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    actions = {"fit": _fit, "fit-units": _fit_units, "encode": _encode, "decode": _decode}
    return actions[args.action](args)


def _fit(args: argparse.Namespace) -> int:
    from soda_jax.codecs.mel import MelCodec, MelSettings

    if not args.max_minutes > 0 or args.codebooks < 1 or args.codebook_size < 1:
        raise UserError("--max_minutes, --codebooks and --codebook_size must be more than 0")
    settings = MelSettings(codebook_sizes=(args.codebook_size,) * args.codebooks)
    rate = settings.grid.sample_rate
    clips = list(_read(_clips(args), args.max_minutes * 60, rate))
    minutes = sum(len(clip) for clip in clips) / rate / 60
    print(f"fitting {args.codebooks} × {args.codebook_size} entries on {minutes:.1f} minutes …")
    frame_rate = rate / (settings.grid.hop * settings.columns_per_frame)
    _warn_if_short(minutes, args.codebook_size, frame_rate, "--codebook_size")
    return _save(MelCodec.fit(clips, settings, seed=args.seed), args.output)


def _fit_units(args: argparse.Namespace) -> int:
    from soda_jax.codecs.encoder_pair import EncoderPair
    from soda_jax.codecs.two_encoder import TwoEncoderCodec

    if not args.max_minutes > 0 or args.layer < 1:
        raise UserError("--max_minutes and --layer must be more than 0")
    sources = _clips(args)
    pair = EncoderPair(args.hubert, args.encodec, args.quantizers, args.layer)
    minutes = 0.0

    def clips() -> Iterator["np.ndarray"]:
        nonlocal minutes
        for clip in _read(sources, args.max_minutes * 60, pair.sample_rate):
            minutes += len(clip) / pair.sample_rate / 60
            yield clip

    codec = TwoEncoderCodec.fit(clips(), pair, units=args.units, seed=args.seed)
    _warn_if_short(minutes, args.units, codec.frame_rate, "--units")
    return _save(codec, args.output)


def _warn_if_short(minutes: float, entries: int, frame_rate: float, option: str) -> None:
    """Prints a warning if there is less audio than k-means needs."""
    frames = minutes * 60 * frame_rate
    if frames >= _FRAMES_PER_ENTRY * entries:
        return
    needed = math.ceil(_FRAMES_PER_ENTRY * entries / frame_rate / 60)
    print(
        f"warning: {minutes:.1f} minutes have {frames / entries:.1f} frames for each of "
        f"{entries} entries, too few for k-means: "
        f"give at least {needed} minute{'s' if needed > 1 else ''}, or "
        f"{option}={max(1, int(frames / _FRAMES_PER_ENTRY))}"
    )


def _save(codec: "Codec", output: str) -> int:
    codec.save(output)
    books = len(codec.codebook_sizes)
    print(
        f"{codec.name}:{output}: {codec.frame_rate:g} frames/s, {books} codebooks, fingerprint "
        f"{codec.fingerprint}"
    )
    return 0


def _clips(args: argparse.Namespace) -> list[Clip]:
    """Returns the clips of the folder or manifest, in random order."""
    source = Path(args.audio)
    if source.is_dir():
        import soundfile

        from tokenize_pipeline.readers._corpus import is_mac_metadata

        known = {f".{name.lower()}" for name in soundfile.available_formats()} | _OTHER_SUFFIXES
        found = (
            path
            for path in source.rglob("*")
            if path.suffix.lower() in known
            and not is_mac_metadata(path.relative_to(source).as_posix())
        )
        clips: list[Clip] = [(path, None, None) for path in sorted(found)]
    elif source.is_file():
        from tokenize_pipeline.readers import DocumentSource, find_reader

        clips = [
            (source.parent / utterance.audio, utterance.start, utterance.end)
            for document in find_reader("manifest").read([source])
            if isinstance(document, DocumentSource)
            for utterance in document.utterances
            if utterance.audio is not None
        ]
    else:
        raise UserError(f"{source} does not exist: give a folder of sound files or a manifest")
    if not clips:
        raise UserError(f"{source} contains no sound files: give another folder or manifest")
    random.Random(args.seed).shuffle(clips)
    return clips


def _read(clips: list[Clip], seconds: float, rate: int) -> "Iterator[np.ndarray]":
    """Yields clips, float32 `[samples]` at `rate` Hz, at most `seconds` in total.

    Prints the number of skipped clips.
    """
    from soda_jax.codecs.audio import AudioError, read_audio
    from soda_jax.progress import progress

    read, skipped, last = 0.0, 0, ""
    with progress("reading audio", len(clips)) as bar:
        for path, start, end in clips:
            bar.advance()
            try:
                clip = read_audio(path, rate, start, end)
            except AudioError as error:
                skipped, last = skipped + 1, str(error)
                continue
            yield clip[: round((seconds - read) * rate)]
            read += len(clip) / rate
            if read >= seconds:
                break
    if skipped:
        print(f"{skipped} of {len(clips)} clips could not be used; the last error: {last}")


def _encode(args: argparse.Namespace) -> int:
    import io

    import numpy as np

    from soda_jax.codecs import load_codec
    from soda_jax.codecs.audio import encode_long, read_audio
    from soda_jax.files import write_atomic

    codec = load_codec(args.codec)
    codes = encode_long(codec, read_audio(args.file, codec.sample_rate))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, codes=codes, fingerprint=np.array(codec.fingerprint))
    write_atomic(args.output, buffer.getvalue())
    print(f"{args.output}: {codes.shape[0]:,} frames × {codes.shape[1]} codebooks")
    return 0


def _decode(args: argparse.Namespace) -> int:
    import zipfile

    import numpy as np

    from soda_jax.codecs import load_codec
    from soda_jax.codecs.audio import write_wav

    codec = load_codec(args.codec)
    try:
        with np.load(args.file, allow_pickle=False) as file:
            codes, fingerprint = file["codes"], str(file["fingerprint"])
    except OSError as error:
        raise UserError(f"{args.file} cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        raise UserError(
            f"{args.file} is not an output of soda codec encode: give a file that it wrote"
        ) from None
    if fingerprint != codec.fingerprint:
        raise UserError(
            f"{args.file} was encoded by a codec with fingerprint {fingerprint}, {args.codec} has "
            f"{codec.fingerprint}: give the codec that encoded the file"
        )
    if args.codebooks is not None and not 1 <= args.codebooks <= len(codec.codebook_sizes):
        raise UserError(
            f"--codebooks={args.codebooks} must be from 1 to {len(codec.codebook_sizes)}"
        )
    try:
        audio = codec.decode([codes[:, : args.codebooks]])[0]
    except (ValueError, IndexError) as error:
        raise UserError(f"{args.file}: {error}") from None
    write_wav(args.output, audio, codec.sample_rate)
    print(f"{args.output}: {len(audio) / codec.sample_rate:.2f} s")
    return 0
