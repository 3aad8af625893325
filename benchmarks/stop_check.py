"""The cost per step of agreeing whether to stop: jax's preemption sync point and a barrier.

    python benchmarks/stop_check.py

Two processes, each with one CPU device, run a step with one all-reduce. The sides alternate within
a round: no agreement, `StopRequest.reached` (what `soda train` calls), and `hosts.any_process`, a
barrier through process 0. The times are those of process 0.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

from _machine import describe_machine
from _results import parse, written

SIDES = ("no agreement", "sync point", "barrier")
SIZE = 256  # of the matrix product in the step


def measure(port: int, index: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Returns milliseconds per step for each side and round, in one of the two processes."""
    from soda_jax.parallel import hosts
    from soda_jax.parallel.preemption import StopRequest

    hosts.start(f"localhost:{port}", 2, index)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    x = jax.make_array_from_callback(
        (2 * SIZE, SIZE), sharding, lambda _: np.ones((SIZE, SIZE), np.float32)
    )

    def step(x: jax.Array) -> jax.Array:
        return jnp.sum(x @ jnp.ones((SIZE, SIZE)))

    run = jax.jit(step, out_shardings=replicated)
    run(x).block_until_ready()
    milliseconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with StopRequest() as request:
        agree = {
            "no agreement": lambda: False,
            "sync point": request.reached,
            "barrier": lambda: hosts.any_process(False, "stop"),
        }
        for _ in range(rounds):
            for side in SIDES:
                hosts.barrier("side")
                start = time.perf_counter()
                for _ in range(steps):
                    run(x).block_until_ready()
                    assert not agree[side]()
                milliseconds[side].append(1e3 * (time.perf_counter() - start) / steps)
    return milliseconds


def main() -> None:
    """Starts the two processes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="steps per side and round")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)  # port, index
    args = parse(parser, {"rounds": 5})
    if args.worker:
        milliseconds = measure(*args.worker, args.rounds, args.steps)
        if args.worker[1] == 0:
            print(json.dumps(milliseconds))
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [f"--rounds={args.rounds}", f"--steps={args.steps}"]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *options, "--worker", str(port), str(index)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    output = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("error: a worker failed, see above")
    milliseconds = json.loads(output[0].splitlines()[-1])  # Gloo prints to stdout as well
    print(f"{describe_machine()}; 2 processes; {args.rounds} rounds of {args.steps} steps\n")
    print("| agreement | ms per step, median | spread | added ms, median | time / no agreement |")
    print("|---|---:|---|---:|---:|")
    reference = milliseconds["no agreement"]
    with written(args.json) as results:
        for side, taken in milliseconds.items():
            ratio = statistics.median(a / b for a, b in zip(taken, reference, strict=True))
            added = statistics.median(a - b for a, b in zip(taken, reference, strict=True))
            results.add("step with agreement", side, "milliseconds", taken, ratio)
            print(
                f"| {side} | {statistics.median(taken):.3f} | {min(taken):.3f} to {max(taken):.3f} "
                f"| {added:+.3f} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
