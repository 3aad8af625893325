"""`soda doctor`: all checks in order, a line each."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from soda_jax.checkpoints import folder
from soda_jax.doctor import checks
from soda_jax.doctor.findings import FAILURE, WARNING, Finding, line, run_check
from soda_jax.parallel import hosts
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import RunConfig, run_config


def examine(config: RunConfig | None, workdir: Path | None) -> int:
    """Runs the checks on all hosts and prints them on process 0.

    Args:
      config: of the run that is to start here; without it data and mesh are not looked at.
      workdir: of that run; without it disk and checkpoints are not.

    Returns:
      1 if the run would fail, else 0.
    """
    with hosts.together():
        return _examine(None if config is None else run_config(config), workdir)


def _examine(config: RunConfig | None, workdir: Path | None) -> int:
    found: list[Finding] = []

    def look(
        what: str,
        measure: Callable[[], Any],
        judge: Callable[[list[Any], int], Iterable[Finding]] | None = None,
    ) -> bool:
        new = run_check(what, measure, judge)
        found.extend(new)
        if hosts.is_first():
            for one in new:
                print(line(one), flush=True)
        return all(one.level != FAILURE for one in new)

    look("versions", checks.versions, checks.judge_versions)
    look("clocks", checks.clocks, checks.judge_clocks)
    look("devices", checks.devices, checks.judge_devices)
    look("arithmetic", checks.arithmetic, checks.judge_arithmetic)
    made: dict[str, Any] = {}
    if not look("mesh", functools.partial(_open, config, made)):
        made = {"mesh": make_mesh()}  # on all hosts, also where it could be opened
    look("all-reduce", functools.partial(checks.all_reduce, made["mesh"]))
    if config is not None and "dataset" in made:
        look("data", functools.partial(checks.data, config, made["dataset"], made["rows"]))
    if workdir is not None:
        directory = folder.DEFAULT if config is None else config.checkpoint.directory
        place = str(folder.of_run(workdir, directory))
        if not folder.is_url(place):
            keep = config.checkpoint.keep if config is not None else 1
            size = made.get("state_bytes", 0.0)
            look("disk", functools.partial(checks.disk, Path(place), size, keep))
        look("checkpoint", functools.partial(checks.checkpoint, made["mesh"], place))
    failures, warnings = (sum(one.level == level for one in found) for level in (FAILURE, WARNING))
    if hosts.is_first():
        verdict = "the run would fail" if failures else "ready"
        print(f"{verdict}: {failures} failures, {warnings} warnings")
    return 1 if failures else 0


def _open(config: RunConfig | None, made: dict[str, Any]) -> checks.Told:
    """Opens data and program of the config, as the run will, and says how the mesh splits them."""
    if config is None:
        made["mesh"] = make_mesh()
        return checks.layout(made["mesh"])
    from soda_jax.parallel.batches import local_rows
    from soda_jax.train.program import make_program
    from soda_jax.train.run_files import open_data
    from soda_jax.train.start import FreshStart

    dataset = open_data(config.data, FreshStart(), False)
    program = make_program(config, dataset.layout, len(dataset.source_names))
    leaves = jax.tree.leaves(program.abstract)
    made |= {
        "mesh": program.mesh,
        "dataset": dataset,
        "rows": local_rows(program.mesh, config.batch_size),
        "state_bytes": float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)),
    }
    return checks.layout(program.mesh)
