"""What the tests of whole runs share: a hook that watches and stops, and what a run has logged."""

import os
import signal

import jax
import numpy as np
from train_toys import leaves

from soda_jax.checkpoints import CheckpointReader
from soda_jax.train.metric_logs import read_metrics


class Watcher:
    """A hook that notes the steps it is called at, and does something at one of them."""

    def __init__(self, every=1, at=0, action=None):
        self.every, self.steps, self._at, self._action = every, [], at, action
        self.views = []

    def __call__(self, run):
        self.steps.append(run.step)
        self.views.append((run.workdir, dict(run.metrics), run.dataset.source_names))
        if run.step == self._at:
            self._action()
        return {} if self._action else {"watched/twice": 2.0 * run.step}


class KilledError(Exception):
    pass


def kill():
    raise KilledError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def rows_of(workdir):
    return read_metrics(workdir / "metrics.jsonl")


# What two runs with the same numbers may differ in.
CLOCKS = {
    "seconds", "tokens_per_second", "audio_seconds_per_second", "flops_per_second", "mfu",
    "data_wait_seconds",
}  # fmt: skip


def without_clocks(rows):
    clocks = {*CLOCKS, "mfu_full_head"}
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def stored_state(workdir, step):
    """All arrays of a checkpoint, by name, as numpy."""
    import orbax.checkpoint as ocp

    reader, checkpointer = CheckpointReader(workdir / "checkpoints"), ocp.PyTreeCheckpointer()
    found = {}
    for item in ("params", "training"):
        # As numpy: the devices of another run may not be there.
        path = reader.path(step) / item
        stored = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = checkpointer.restore(path, restore_args=as_numpy)
        found |= {f"{item}.{name}": value for name, value in leaves(tree).items()}
    return found, reader.metadata(step)


def assert_same_run(workdir, other, step=6):
    (found, metadata), (wanted, metadata_wanted) = (
        stored_state(folder, step) for folder in (workdir, other)
    )
    assert found.keys() == wanted.keys() and len(found) > 30
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert metadata == metadata_wanted
    assert without_clocks(rows_of(workdir)) == without_clocks(rows_of(other))
