"""SIGTERM as a request to stop: all processes of a run stop at the same step.

With several processes this is jax's preemption sync point. Its notifier receives SIGTERM in any process,
and the processes agree in the background on a step that none of them has reached. A call is a local
comparison; a barrier at each step would cost a round trip through process 0.
"""

import signal
import threading
from contextlib import AbstractContextManager
from typing import Any, Self

from jax.experimental import multihost_utils

from soda_jax.parallel import hosts


class StopRequest(AbstractContextManager["StopRequest", None]):
    """Receives SIGTERM while it is entered; restores the previous handler afterwards."""

    def __init__(self) -> None:
        """Creates it without installing a handler."""
        self._received = threading.Event()
        self._previous: Any = None
        self._calls = 0

    def __enter__(self) -> Self:
        # jax.distributed has installed its own handler, which a Python handler would replace.
        if hosts.is_single_process() and threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGTERM, lambda *_: self._received.set())
            self._previous = signal.SIG_DFL if handler is None else handler
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self) -> bool:
        """Returns True, in the same call of every process, after one of them received SIGTERM.

        All processes call it equally often. jax stops at exactly one count, the largest of all
        processes plus 1. The calls are counted, not the steps: a notice before the first call counts as
        count 0, so a run that resumes at step 1000 would pass the agreed step 1 and never stop
        (findings/jax_preemption_before_first_step.sh).
        """
        if hosts.is_single_process():
            return self._received.is_set()
        self._calls += 1
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self._received.set()
        return self._received.is_set()
