"""`soda serve`: a local web page and JSON API to try a model."""

import argparse
from typing import Any

from soda_jax.commands._actions import add_number
from soda_jax.commands._mesh import add_mesh, parse_mesh

SUMMARY = "serve a web page and a JSON API to try a model"
EXAMPLE = "soda serve --workdir=demo/run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda serve`."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, help="step (default: the newest valid one)")
    parser.add_argument(
        "--codec", default="", help="codec such as mel:DIR (default: WORKDIR/codec)"
    )
    parser.add_argument("--dtype", default="", help="weights as float32, bfloat16 or int8")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    add_number(parser, "--port", 8000, "port; 0 = a free one")
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="further name under which the page is opened, such as that of a proxy; may be repeated",
    )
    add_number(parser, "--slots", 4, "prompts that are decoded at the same time")
    add_number(parser, "--max_seconds", 30.0, "longest generated utterance in seconds")
    add_number(parser, "--per_minute", 120, "requests of a client per minute that need the model")
    add_mesh(parser)


def run(args: argparse.Namespace) -> int:
    """Loads the model and serves until it is interrupted."""
    import socket

    import uvicorn

    from soda_jax.errors import UserError

    if not 0 <= args.port <= 65535:
        raise UserError(f"--port={args.port} must be from 0 to 65535")
    for name in ("slots", "per_minute"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    if not 0 < args.max_seconds <= 600:
        raise UserError(f"--max_seconds={args.max_seconds:g} must be above 0 and at most 600")
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listener = socket.create_server((args.host, args.port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host={args.host} --port={args.port}: {error}: use another port, or 0 for a free one"
        ) from None

    from soda_jax.generate.speech_model import load
    from soda_jax.model.decoding import check_dtype
    from soda_jax.serve.app import Server
    from soda_jax.serve.checks import Limits
    from soda_jax.train.program import use_compilation_cache

    with listener:
        check_dtype(args.dtype or "float32")
        use_compilation_cache()
        model = load(
            args.workdir, step=args.step, codec=args.codec, dtype=args.dtype,
            mesh=parse_mesh(args.mesh),
        )  # fmt: skip
        port = listener.getsockname()[1]
        shown = f"[{args.host}]" if ":" in args.host else args.host
        names = {shown, "127.0.0.1", "localhost", "[::1]"} if _local(args.host) else {shown}
        hosts = [f"{name}:{port}" for name in sorted(names)] + args.allow_host
        if port == 80:  # clients leave the default port out
            hosts += sorted(names)
        limits = Limits(max_seconds=args.max_seconds, per_minute=args.per_minute)
        server = Server(model, name=args.workdir, hosts=hosts, slots=args.slots, limits=limits)
        server.warm_up()
        print(f"serving {args.workdir} at http://{shown}:{port}/ (stop with Ctrl+C)", flush=True)
        try:
            # Without proxy_headers, a client cannot choose the address that its rate is counted for.
            config = uvicorn.Config(
                server.app, log_level="warning", server_header=False, proxy_headers=False,
                timeout_graceful_shutdown=5,
            )  # fmt: skip

            class Program(uvicorn.Server):
                def handle_exit(self, sig: int, frame: Any) -> None:
                    server.stop()
                    super().handle_exit(sig, frame)

            Program(config).run(sockets=[listener])
        finally:
            server.close()
    return 0


def _local(host: str) -> bool:
    """Returns whether a server at this address is reached under the names of the machine itself."""
    return host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")
