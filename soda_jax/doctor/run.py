"""Runs all checks of `soda doctor` in order and prints one line per finding."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from soda_jax.checkpoints import folder
from soda_jax.doctor import checks
from soda_jax.doctor.findings import FAILURE, WARNING, Finding, run_check
from soda_jax.files import is_url
from soda_jax.parallel import hosts
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import RunConfig, run_config


def examine(config: RunConfig | None, workdir: Path | None) -> int:
    """Runs the checks on all hosts and prints the findings in process 0.

    Args:
      config: config of the planned run; if None, data and mesh of the run are not checked.
      workdir: workdir of the planned run; if None, disk and checkpoints are not checked.

    Returns:
      1 if the run would fail, else 0.
    """
    with hosts.fail_together():
        return _examine(None if config is None else run_config(config), workdir)


def _examine(config: RunConfig | None, workdir: Path | None) -> int:
    found: list[Finding] = []

    def check(
        name: str,
        measure: Callable[[], Any],
        judge: Callable[[list[Any], int], Iterable[Finding]] | None = None,
    ) -> bool:
        new = run_check(name, measure, judge)
        found.extend(new)
        if hosts.is_primary():
            print(*new, sep="\n", flush=True)
        return all(finding.level != FAILURE for finding in new)

    check("versions", checks.versions, checks.judge_versions)
    check("clocks", checks.clocks, checks.judge_clocks)
    check("devices", checks.devices, checks.judge_devices)
    check("arithmetic", checks.arithmetic, checks.judge_arithmetic)
    run: dict[str, Any] = {}
    if not check("mesh", functools.partial(_open, config, run)):
        run = {"mesh": make_mesh()}  # in all processes, even if `_open` succeeded in this one
    check("all-reduce", functools.partial(checks.all_reduce, run["mesh"]))
    if config is not None and "dataset" in run:
        check("data", functools.partial(checks.data, config, run["dataset"], run["rows"]))
    if workdir is not None:
        setting = folder.DEFAULT if config is None else config.checkpoint.directory
        directory = str(folder.of_run(workdir, setting))
        if not is_url(directory):
            keep = config.checkpoint.keep if config is not None else 1
            size = run.get("state_bytes", 0.0)
            check("disk", functools.partial(checks.disk, Path(directory), size, keep))
        check("checkpoint", functools.partial(checks.checkpoint, run["mesh"], directory))
    failures, warnings = (sum(one.level == level for one in found) for level in (FAILURE, WARNING))
    if hosts.is_primary():
        verdict = "the run would fail" if failures else "ready"
        print(f"{verdict}: {failures} failures, {warnings} warnings")
    return 1 if failures else 0


def _open(config: RunConfig | None, run: dict[str, Any]) -> checks.Results:
    """Opens the data and makes the training program as `soda train` does; reports the mesh.

    Mesh, data set, rows and the size of the training state are stored in `run`.
    """
    if config is None:
        run["mesh"] = make_mesh()
        return checks.layout(run["mesh"])
    from soda_jax.parallel.batches import local_rows
    from soda_jax.train.program import make_program
    from soda_jax.train.run_files import open_data
    from soda_jax.train.start import FreshStart

    dataset = open_data(config.data, FreshStart(), False, legal_sets=config.model.head == "legal")
    program = make_program(
        config, dataset.layout, len(dataset.source_names), codebooks=dataset.codebooks
    )
    leaves = jax.tree.leaves(program.abstract)
    run |= {
        "mesh": program.mesh,
        "dataset": dataset,
        "rows": local_rows(program.mesh, config.batch_size),
        "state_bytes": float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)),
    }
    return checks.layout(program.mesh)
