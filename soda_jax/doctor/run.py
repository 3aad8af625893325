"""`soda doctor`: all checks in order, a line each."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from soda_jax.doctor import checks
from soda_jax.doctor.findings import FAILURE, WARNING, Finding, line, run_check
from soda_jax.parallel import hosts
from soda_jax.parallel.mesh import make_mesh


def examine(config: Any | None, workdir: Path | None) -> int:
    """Runs the checks on all hosts and prints them on process 0.

    Args:
      config: of the run that is to start here; without it data and mesh are not looked at.
      workdir: of that run; without it disk and checkpoints are not.

    Returns:
      1 if the run would fail, else 0.
    """
    found: list[Finding] = []

    def look(what: str, check: Callable[[], Iterable[Finding]]) -> bool:
        new = run_check(what, check)
        found.extend(new)
        if hosts.is_first():
            for one in new:
                print(line(one), flush=True)
        return all(one.level != FAILURE for one in new)

    look("versions", checks.versions)
    look("clocks", checks.clocks)
    look("devices", checks.devices)
    look("arithmetic", checks.arithmetic)
    made: dict[str, Any] = {}
    if not look("mesh", functools.partial(_open, config, made)):
        made["mesh"] = make_mesh()
    look("all-reduce", functools.partial(checks.all_reduce, made["mesh"]))
    if "dataset" in made:
        look("data", functools.partial(checks.data, config, made["dataset"], made["rows"]))
    if workdir is not None:
        keep = config.checkpoint.keep if config is not None else 1
        look("disk", functools.partial(checks.disk, workdir, made.get("state_bytes", 0.0), keep))
        look("checkpoint", functools.partial(checks.checkpoint, made["mesh"], workdir))
    failures, warnings = (sum(one.level == level for one in found) for level in (FAILURE, WARNING))
    if hosts.is_first():
        verdict = "the run would fail" if failures else "ready"
        print(f"{verdict}: {failures} failures, {warnings} warnings")
    return 1 if failures else 0


def _open(config: Any | None, made: dict[str, Any]) -> Iterable[Finding]:
    """Opens data and program of the config, as the run will, and says how the mesh splits them."""
    if config is None:
        made["mesh"] = make_mesh()
        return list(checks.logical_rows(made["mesh"]))
    from soda_jax.parallel.batches import local_rows
    from soda_jax.train import run as parts

    dataset = parts.open_data(config, None, False)
    program = parts.make_program(config, dataset.layout, len(dataset.source_names))
    leaves = jax.tree.leaves(program.abstract)
    made |= {
        "mesh": program.mesh,
        "dataset": dataset,
        "rows": local_rows(program.mesh, config.batch_size),
        "state_bytes": float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)),
    }
    return list(checks.logical_rows(program.mesh))
