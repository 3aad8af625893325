"""`soda convert`: converts checkpoints to and from the Hugging Face format, and to GGUF."""

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from soda_jax.commands._actions import add_action

if TYPE_CHECKING:
    from soda_jax.convert.to_hf import Check, Converted
    from soda_jax.model import DecoderConfig

SUMMARY = "convert checkpoints to and from the Hugging Face format, and to GGUF for llama.cpp"
EXAMPLE = "soda convert to-hf runs/soda-600m exported/soda-600m --dtype=bf16"
_FROM = "soda convert from-hf Qwen3-0.6B-Base warm/qwen3 --extend-vocabulary"
_GGUF = "soda convert to-gguf exported/soda-600m soda-600m.gguf --dtype=q8_0"
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "float32": "float32", "bfloat16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions `to-hf` and `from-hf` and their options."""
    actions = parser.add_subparsers(dest="action", required=True)
    out = add_action(actions, "to-hf", "write a run's checkpoint as a Transformers folder", EXAMPLE)
    out.add_argument("workdir", help="workdir of the run")
    out.add_argument("out", help="new or empty folder to write")
    out.add_argument(
        "--step", type=int, help="step of the checkpoint; default: the newest valid one"
    )
    out.add_argument("--dtype", default="f32", choices=tuple(_DTYPES), help="dtype of the tensors")
    out.add_argument(
        "--shard_mb",
        type=int,
        default=1024,
        help="maximum size of a file in MiB; the tensors of one file are held in memory",
    )
    out.add_argument(
        "--contamination",
        metavar="FILE",
        help="report of soda inspect --contamination, for the model card",
    )
    _add_verify(out, "a data set; default: the data of the run")
    into = add_action(actions, "from-hf", "write a Hugging Face folder as a checkpoint", _FROM)
    into.add_argument("folder", help="folder with config.json, safetensors and tokenizer.json")
    into.add_argument("workdir", help="new or empty folder to write")
    into.add_argument(
        "--extend-vocabulary",
        "--extend_vocabulary",
        action="store_true",
        help="add embedding and head rows for the markers and the codebooks to a Qwen3 text model",
    )
    into.add_argument(
        "--new_rows",
        default="spread",
        choices=("spread", "mean"),
        help="spread: draw new rows with the mean and standard deviation of the old rows; "
        "mean: use the mean of the old rows",
    )
    into.add_argument("--seed", type=int, default=0, help="seed of the new rows")
    into.add_argument("--codec", metavar="SPEC", help="codec of the data: mel:DIR or mimi:DIR")
    into.add_argument(
        "--codebook_sizes",
        metavar="N,N,…",
        help="entries of each codebook, if --codec is not given; default: 8 codebooks of 2048",
    )
    into.add_argument(
        "--tokenizer", help="text tokenizer of the data, for a model that soda did not export"
    )
    into.add_argument(
        "--changed",
        action="store_true",
        help="the model was trained further after soda exported it",
    )
    _add_verify(into, "a data set with the model's tokenizer and codec")

    gguf = add_action(actions, "to-gguf", "write an export of to-hf as a GGUF file", _GGUF)
    gguf.add_argument("folder", help="folder that soda convert to-hf wrote")
    gguf.add_argument("out", help="new file; the grammar of speech is written next to it")
    gguf.add_argument(
        "--dtype", default="f16", choices=("f32", "f16", "q8_0"), help="dtype of the matrices"
    )


def _add_verify(action: argparse.ArgumentParser, data: str) -> None:
    action.add_argument(
        "--verify",
        default="logits",
        choices=("tensors", "logits", "full"),
        help="tensors: compare the checksums of all tensors; logits: also the logits of a prompt; "
        "full: also the held-out loss",
    )
    action.add_argument("--data", metavar="DIR", help=f"for --verify=full: {data}")


def run(args: argparse.Namespace) -> int:
    """Converts and verifies a checkpoint, prints a summary and returns 0."""
    with _exit_on_signals():
        if args.action == "to-hf":
            _to_huggingface(args)
        elif args.action == "to-gguf":
            _to_gguf(args)
        else:
            _from_huggingface(args)
    return 0


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Raises SystemExit on SIGTERM and SIGHUP, so that unfinished output is removed."""

    def stop(number: int, _: Any) -> None:
        print(f"soda convert: ended by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _to_huggingface(args: argparse.Namespace) -> None:
    from soda_jax.convert.to_hf import to_huggingface
    from soda_jax.errors import UserError

    if args.shard_mb < 1:
        raise UserError(f"--shard_mb={args.shard_mb} must be at least 1")
    done = to_huggingface(
        args.workdir,
        args.out,
        step=args.step,
        dtype=_DTYPES[args.dtype],
        shard_bytes=args.shard_mb << 20,
        compare=args.verify != "tensors",
        contamination=args.contamination,
        further=_held_out(args, args.workdir) if args.verify == "full" else None,
    )
    _print_summary(args.out, done)


def _to_gguf(args: argparse.Namespace) -> None:
    from soda_jax.convert.to_gguf import to_gguf

    done = to_gguf(args.folder, args.out, args.dtype)
    print(
        f"{args.out}: {done.parameters:,} parameters, {done.bytes / 1e6:,.0f} MB in {done.seconds:.1f} s"
    )


def _from_huggingface(args: argparse.Namespace) -> None:
    from soda_jax.codecs import load_codec
    from soda_jax.convert.extend import NewRows
    from soda_jax.convert.from_hf import from_huggingface
    from soda_jax.errors import UserError

    sizes = None
    if args.codebook_sizes:
        try:
            sizes = tuple(int(part) for part in args.codebook_sizes.split(","))
        except ValueError:
            sizes = (0,)
        if min(sizes) < 1:
            raise UserError(
                f"--codebook_sizes={args.codebook_sizes}: give positive numbers, as in 512,512"
            )
    if args.verify == "full" and not args.data:
        raise UserError(
            "--verify=full needs --data=DIR, a data set with the model's tokenizer and codec"
        )
    rows = NewRows(args.seed, 1.0 if args.new_rows == "spread" else 0.0)
    done, config = from_huggingface(
        args.folder,
        args.workdir,
        extend=rows if args.extend_vocabulary else None,
        codebook_sizes=sizes,
        tokenizer=args.tokenizer,
        codec=load_codec(args.codec) if args.codec else None,
        codec_spec=args.codec or "",
        changed=args.changed,
        compare=args.verify != "tensors",
        further=_held_out(args, None) if args.verify == "full" else None,
    )
    _print_summary(args.workdir, done)
    print(
        "start a run from it: soda train --config=… --workdir=… " + _settings(config, args.workdir)
    )


def _settings(config: "DecoderConfig", workdir: str) -> str:
    """Returns the config overrides with which a run starts from the checkpoint in `workdir`."""
    from soda_jax.schema import MODEL_SHAPE, ROPE_SHAPE

    words = [f"--config.start_from={workdir}"]
    words += [f"--config.model.{name}={getattr(config, name)}" for name in MODEL_SHAPE]
    words += [f"--config.model.rope.{name}={getattr(config.rope, name)}" for name in ROPE_SHAPE]
    return shlex.join(words)


def _print_summary(path: str, done: "Converted") -> None:
    phrases = [
        f"{done.parameters:,} parameters",
        f"{done.bytes / 1e6:,.0f} MB in {done.seconds:.1f} s, {done.bytes / 1e6 / done.seconds:,.0f} MB/s "
        "including verification",
        "checksums of all tensors compared",
    ]
    if done.logits is not None:
        phrases.append(
            f"logits of a random prompt differ by at most {done.logits.difference:.2g} (their "
            f"standard deviation is {done.logits.deviation:.2g})"
        )
    print(f"{path}: {'; '.join(phrases)}")


def _held_out(args: argparse.Namespace, workdir: str | None) -> "Check":
    """Returns a function that compares the held-out loss before and after the conversion."""
    from soda_jax.convert.weights import Weights, whole
    from soda_jax.errors import UserError
    from soda_jax.evaluate.loss import held_out_sums
    from soda_jax.evaluate.windows import open_windows
    from soda_jax.generate.checkpoint import TrainedDecoder
    from soda_jax.model import ModelFunctions, VocabularyBlocks

    windows = open_windows(_data(args, workdir))

    def loss(weights: Weights) -> float:
        vocabulary, layout = weights.config.vocabulary, windows.layout
        if vocabulary != VocabularyBlocks.of(layout):
            raise UserError(
                f"--data={args.data} has a vocabulary of {layout.size:,} ids, the model has "
                f"{vocabulary.size:,}; give data with the model's tokenizer and codec (soda retext)"
            )
        model = ModelFunctions(weights.config)
        sums = held_out_sums(TrainedDecoder(0, {}, layout, model, whole(weights)), windows)
        return float(sums["nll"].sum() / sums["count"].sum())

    def check(before: Weights, after: Weights) -> None:
        first, second = loss(before), loss(after)
        print(
            f"held-out loss of {windows.count:,} windows: {first:.5f} nats per token before, "
            f"{second:.5f} after"
        )
        rounded = _DTYPES[getattr(args, "dtype", "f32")] == "bfloat16"
        if not abs(second - first) <= (0.01 if rounded else 1e-5):
            raise UserError(
                f"the held-out loss is {first:.5f} before and {second:.5f} after the conversion; please "
                "report this"
            )

    return check


def _data(args: argparse.Namespace, workdir: str | None) -> dict[str, Any]:
    """Returns the data config for the held-out loss, from --data or from the run in `workdir`."""
    from soda_jax.configs import base
    from soda_jax.errors import UserError

    if args.data is None:
        assert workdir is not None
        from soda_jax.checkpoints import CheckpointReader, folder

        reader = CheckpointReader(folder.of_run(workdir))
        data = reader.metadata(reader.choose(args.step, params_only=True).step)["data"]
        if not all(source["path"] for source in data["sources"].values()):
            raise UserError(
                f"{workdir} was written by soda convert from-hf and has no data; give --data=DIR"
            )
        return data
    config = base.default()
    config.data.sources = {"data": base.source(args.data, 1.0)}
    return config.data.to_dict()
