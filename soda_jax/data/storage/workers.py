"""Threads for reads that may be abandoned: they do not hold up the end of the program.

`concurrent.futures` waits for its threads when the interpreter ends; one that tries an unreachable store
again and again would keep a run that has failed from ending, with all the chips it holds.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Workers:
    """Runs functions in daemon threads, which start with the first one and end with this object."""

    def __init__(self, threads: int, name: str):
        """Args: threads: how many. name: of them."""
        self._threads, self._name, self._started = threads, name, False
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """The result of `function(*arguments)`, to come."""
        with self._lock:
            if not self._started:
                self._start()
        future: Future[T] = Future()
        self._jobs.put((future, function, arguments))
        return future

    def _start(self) -> None:
        self._started = True
        weakref.finalize(self, _dismiss, self._jobs, self._threads)
        for number in range(self._threads):
            name = f"{self._name}-{number}"
            threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        # A waiting thread must not keep the last result and the objects behind it alive.
        del job, future, function, arguments


def _dismiss(jobs: "SimpleQueue[_Job | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)
