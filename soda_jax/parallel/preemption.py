"""Handles SIGTERM: all processes of a run stop at the same step.

A multi-process run uses jax's preemption sync point. When any process receives SIGTERM, the
processes agree in the background on a call count that none of them has reached. Each call of
`StopRequest.reached` is a local comparison; a barrier at each step would cost a round trip to
process 0.
"""

import itertools
import signal
import threading
from contextlib import AbstractContextManager
from typing import Any, Self

from jax.experimental import multihost_utils

from soda_jax.parallel import hosts

# Of all requests of a multi-process run: jax compares the count with one point per process.
_counts = itertools.count(1)
_preempted = threading.Event()


class StopRequest(AbstractContextManager["StopRequest", None]):
    """Handles SIGTERM inside a `with` block; restores the previous handler at the end.

    Requests may be nested: SIGTERM reaches the outer ones too, such as that of a study which trains
    several runs.
    """

    def __init__(self) -> None:
        """Initializes the request; `__enter__` installs the handler."""
        self._received = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> Self:
        # In a multi-process run, a Python handler would replace the one that jax.distributed
        # installed.
        if hosts.is_single_process() and threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGTERM, self._receive)
            self._previous = signal.SIG_DFL if handler is None else handler
        return self

    def _receive(self, *arguments: Any) -> None:
        self._received.set()
        outer = getattr(self._previous, "__self__", None)
        if isinstance(outer, StopRequest):
            outer._receive(*arguments)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self) -> bool:
        """Returns True after a process received SIGTERM, from the same call on in every process.

        All processes must call this method the same number of times. jax returns True at exactly
        one count: the largest count of any process plus 1. This class counts calls instead of
        steps, because jax chooses count 1 if SIGTERM arrives before the first call, and a run that
        resumes at step 1000 would then never stop (findings/jax_preemption_before_first_step.sh). All
        requests of a process count together, because a count that begins again may not reach the point.
        """
        if hosts.is_single_process():
            return self._received.is_set()
        if multihost_utils.reached_preemption_sync_point(next(_counts)):
            _preempted.set()
        return _preempted.is_set()
