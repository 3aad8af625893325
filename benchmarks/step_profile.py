"""The time of our training step by kind of operation, from a profile on this machine.

    python benchmarks/step_profile.py [--shapes=d256,d512 --remat=none]

The profiler measures the time of every instruction of the compiled step, and the text of the
program determines its kind. On a CPU, an instruction that several threads share is counted only on
the thread that leads it, and times of threads that work on different instructions are added: the
fractions are meaningful, the milliseconds are not.
"""

import argparse
import collections
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _machine import describe_machine
from _results import parse, written
from train_step import SMALL, SUITE, shape_of

from soda_jax import memory
from soda_jax.errors import UserError
from soda_jax.plan.hlo import Instruction, Module, parse_module

STEPS = 4
LAYERS, HEAD, SCORES, KERNELS = (
    "matrix products with the weights of the layers",
    "matrix products with the head",
    "matrix products of attention",
    "attention kernels",
)
BETWEEN, UPDATE, COPIES = (
    "norms, rotations, softmax, SwiGLU, loss",
    "norm of the gradients, AdamW",
    "copies",
)
PRODUCTS = (LAYERS, HEAD, SCORES, KERNELS)


def kind_of(line: Instruction, module: Module) -> str:
    """Returns the kind of an instruction of the step."""
    found = re.search(r'op_name="([^"]*)"', line.text)
    origin = found[1] if found else ""
    inside = module.computations.get(line.called("calls") or "", {})
    if line.opcode == "custom-call" and "pallas" in line.text:
        return KERNELS
    library = line.opcode == "custom-call" and re.search(r"gemm|matmul", line.text)
    if line.opcode == "dot" or library or any(part.opcode == "dot" for part in inside.values()):
        # Names of the dimensions in attention/plain.py; the layers are the body of a scan.
        if "bgq" in origin:
            return SCORES
        return LAYERS if "closed_call" in origin else HEAD
    if not origin:
        return COPIES
    return BETWEEN if "jvp" in origin else UPDATE


def events(folder: str) -> Iterator[tuple[str, float]]:
    """Yields (instruction, milliseconds) for every event on the device in the trace in `folder`."""
    from jax.profiler import ProfileData

    (trace,) = Path(folder).rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(trace)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                if on_device:  # the events are kernels, whose names differ from the instructions
                    name = str(dict(event.stats).get("hlo_op", ""))
                else:
                    name = event.name
                yield name, event.duration_ns / 1e6


def profile(order: dict[str, Any], remat: str) -> dict[str, float]:
    """Returns the milliseconds of a step by kind."""
    import jax
    from _step_ours import prepare

    program, batch = prepare(order, {"remat": remat})
    state = program.init()
    compiled = program.step.trace(state, batch).lower().compile()
    module = parse_module(compiled.as_text())
    lines = {name: line for body in module.computations.values() for name, line in body.items()}
    for _ in range(2):
        state, _ = jax.block_until_ready(compiled(state, batch, program.step.rates))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, _ = jax.block_until_ready(compiled(state, batch, program.step.rates))
        times: dict[str, float] = collections.defaultdict(float)
        for name, milliseconds in events(folder):
            # The time of a loop is that of the instructions in it.
            if name in lines and lines[name].opcode not in ("while", "call", "conditional"):
                times[kind_of(lines[name], module)] += milliseconds / STEPS
    return dict(times)


def main() -> None:
    """Profiles and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help=f"of {', '.join([*SMALL, *SUITE])}")
    parser.add_argument("--batch", type=int, help="windows per step, for all shapes")
    parser.add_argument("--remat", default="", help="model.remat (CPU none, else full)")
    args = parse(parser, {"shapes": "d256"})
    # Disables command buffers (CUDA graphs), which would be a single event in the trace.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer="
    import jax

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    names = (args.shapes or ",".join(SMALL if on_cpu else SUITE)).split(",")
    remat = args.remat or ("none" if on_cpu else "full")
    try:
        shapes = {name: shape_of(name, args.batch) for name in names}
        orders = {
            name: {"platform": device.platform, "shape": dataclasses.asdict(shape)}
            for name, shape in shapes.items()
        }
        times = {name: profile(order, remat) for name, order in orders.items()}
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{describe_machine()}; {device.device_kind}; jax {jax.__version__}; remat {remat}\n")
    print("| share of the timed instructions | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    wholes = {name: sum(by_kind.values()) for name, by_kind in times.items()}
    with written(args.json) as results:
        for name, by_kind in times.items():
            for kind, milliseconds in by_kind.items():
                share = milliseconds / wholes[name]
                results.add(f"{name}, {kind}", "ours", "share_of_time", [share])
    for kind in (*PRODUCTS, BETWEEN, UPDATE, COPIES):
        if any(kind in by_kind for by_kind in times.values()):
            cells = [f"{times[name].get(kind, 0.0) / wholes[name]:.0%}" for name in names]
            print(f"| {kind} | " + " | ".join(cells) + " |")
    away = [1 - sum(times[n].get(kind, 0.0) for kind in PRODUCTS) / wholes[n] for n in names]
    print("| outside matrix products | " + " | ".join(f"{share:.0%}" for share in away) + " |")


if __name__ == "__main__":
    memory.restart_with_huge_pages()  # as `soda train` does
    main()
