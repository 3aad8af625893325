"""The cost of a checkpoint: the time that training waits, and MB/s compared with a plain write.

    python benchmarks/checkpoint.py [--megabytes 512] [--repeats 5] [--directory /tmp]

The state is f32 noise on one device, a third parameters and two thirds moments: stacked layer
weights, as in the decoder, and an embedding table. Each round measures every row once, so that a
slow phase of the disk affects all rows; the table has the median over rounds and the range. Files
are read from the page cache, so reads measure the software and not the disk; a plain read of the
same bytes is one of the rows.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _machine import describe_machine
from _results import parse, written

from soda_jax.checkpoints import Checkpointer, CheckpointReader, digest
from soda_jax.progress import track

LAYERS, WIDTH = 16, 1024
LIMITS = {
    "async save: training waits": "starting copies and threads; on GPU or TPU, copying to the host",
    "async save until committed": "writing through the page cache, and fsync",
    "digest of the step": "crc32c on one core, the files still in the page cache",
    "restore, verified": "one pass for the digest, one for the arrays",
    "restore, verified before": "copying chunks into arrays",
    "orbax default (zstd) save": "compressing noise on few cores",
}


def seconds(work: Callable[[], Any]) -> float:
    """Returns the wall-clock time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def make_state(megabytes: int) -> dict[str, Any]:
    """Returns {params, opt_state}, about `megabytes` of f32 noise: half `up`, an eighth `table`."""
    rows = max(LAYERS, megabytes * 1_000_000 // (4 * 3 * 8 * WIDTH) // LAYERS * LAYERS)
    shapes = {
        "up": (LAYERS, 4 * rows // LAYERS, WIDTH),
        "down": (LAYERS, WIDTH, 2 * rows // LAYERS),
        "output": (LAYERS, rows // LAYERS, WIDTH),
        "table": (rows, WIDTH),
    }
    generator = np.random.default_rng(0)

    def leaves() -> dict[str, jax.Array]:
        return {
            name: jax.device_put(generator.standard_normal(shape, np.float32))
            for name, shape in shapes.items()
        }

    return {"params": leaves(), "opt_state": {"mu": leaves(), "nu": leaves()}}


def plain_write(path: Path, arrays: list[np.ndarray]) -> None:
    """Writes all bytes to one file, then calls fsync."""
    with path.open("wb") as file:
        for array in arrays:
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def plain_read(path: Path) -> None:
    """Reads the file in pieces."""
    with path.open("rb") as file:
        while file.read(8 << 20):
            pass


def default_save(folder: Path, state: dict[str, Any]) -> None:
    """Saves with the defaults of Orbax's CheckpointManager: compressed arrays."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder) as manager:
        manager.save(1, args=ocp.args.PyTreeSave(state))


def one_round(folder: Path, state: dict[str, Any], arrays: list[np.ndarray]) -> dict[str, float]:
    """Returns the seconds of every row."""
    took = {}
    took["plain write + fsync"] = seconds(lambda: plain_write(folder / "plain", arrays))
    took["plain read"] = seconds(lambda: plain_read(folder / "plain"))
    (folder / "plain").unlink()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpointer(folder / "run", every_steps=1) as checkpointer:
        begin = time.perf_counter()
        checkpointer.maybe_save(1, state, {})
        took["async save: training waits"] = time.perf_counter() - begin
        checkpointer.wait()
        took["async save until sealed"] = time.perf_counter() - begin
    step = CheckpointReader(folder / "run").path(1)
    took["digest of the step"] = seconds(lambda: digest.verify_digest(step))
    took["async save until committed"] = (
        took["async save until sealed"] - took["digest of the step"]
    )
    reader = CheckpointReader(folder / "run")
    took["restore, verified"] = seconds(lambda: jax.block_until_ready(reader.restore(abstract)[0]))
    took["restore, verified before"] = seconds(
        lambda: jax.block_until_ready(reader.restore(abstract)[0])
    )
    shutil.rmtree(folder / "run")
    took["orbax default (zstd) save"] = seconds(lambda: default_save(folder / "default", state))
    shutil.rmtree(folder / "default")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", default=None, help="a folder on the disk to measure")
    args = parse(parser, {"megabytes": 128, "repeats": 2})
    state = make_state(args.megabytes)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    with written(args.json) as results, tempfile.TemporaryDirectory(dir=args.directory) as folder:
        one_round(Path(folder), make_state(10), [np.zeros(1)])  # imports and first-call costs
        rounds = [
            one_round(Path(folder), state, arrays)
            for _ in track(range(args.repeats), "rounds", args.repeats)
        ]
        for name in rounds[0]:
            side = "reference" if name.startswith(("plain", "orbax")) else "ours"
            results.add(name, side, "seconds", [took[name] for took in rounds])
    print(
        f"\n{megabytes:.0f} MB of f32, {len(arrays)} arrays; {args.repeats} rounds; "
        f"{describe_machine()}, {jax.devices()[0].device_kind}\n"
    )
    print("| what | median | range | MB/s | limited by |\n|---|---|---|---|---|")
    for name in rounds[0]:
        times = [took[name] for took in rounds]
        median = statistics.median(times)
        rate = "" if "waits" in name else f"{megabytes / median:,.0f}"
        spread = f"{min(times):.3f}–{max(times):.3f} s"
        print(f"| {name} | {median:.3f} s | {spread} | {rate} | {LIMITS.get(name, '')} |")


if __name__ == "__main__":
    main()
