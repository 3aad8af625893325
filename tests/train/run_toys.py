"""What the tests of whole runs share: a hook that watches and stops, and what a run has logged."""

import os
import signal

from soda_jax.train.metrics import read_metrics


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
