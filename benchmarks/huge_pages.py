"""The time of a training step on a CPU with and without the allocator settings of `soda_jax/memory.py`.

    python benchmarks/huge_pages.py

Both sides run the step of `soda train` on random tokens, each in one process, and alternate within
a round. With the settings, glibc keeps the memory of a step's temporaries in huge pages.
"""

import argparse
import dataclasses
import statistics
import sys

from _machine import describe_machine
from _results import parse, written
from _sides import Command, SideError, take_turns
from train_step import shape_of

# If GLIBC_TUNABLES sets a glibc.malloc option, `soda train` does not change the allocator.
DEFAULT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="d256", help="a shape of train_step.py")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn")
    args = parse(parser, {"rounds": 3})
    order = {"shape": dataclasses.asdict(shape_of(args.shape, None)), "platform": "cpu"}
    commands = {
        "huge pages": Command(sys.executable, "_step_ours.py", order, {"GLIBC_TUNABLES": ""}),
        "glibc default": Command(sys.executable, "_step_ours.py", order, DEFAULT),
    }
    turns = take_turns(commands, args.rounds, args.seconds, resident=True, what="rounds")
    for name, side in turns.items():
        if side.missing:
            raise SideError(f"{name}: {side.missing}")
    milliseconds = {
        name: [1e3 * answer["seconds"] / answer["steps"] for answer in side.answers]
        for name, side in turns.items()
    }
    print(f"{describe_machine()}; shape {args.shape}; {args.rounds} rounds\n")
    print("| allocator | ms per step, median | spread | time / huge pages |")
    print("|---|---:|---|---:|")
    reference = milliseconds["huge pages"]
    with written(args.json) as results:
        for name, taken in milliseconds.items():
            ratio = statistics.median(a / b for a, b in zip(taken, reference, strict=True))
            results.add("training step", name, "milliseconds", taken, ratio)
            print(
                f"| {name} | {statistics.median(taken):.0f} | {min(taken):.0f} to {max(taken):.0f} "
                f"| {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
