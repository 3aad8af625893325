"""One thread that runs the requests of a server on one model, together where their settings allow it."""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from soda_jax.errors import UserError
from soda_jax.generate.pipeline import OnTokens, Runner, Work, check_best_of, find_task
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import Request, Result, TaskContext, TaskOptions

OnDone = Callable[[Result | UserError], None]


class BusyError(UserError):
    """Raised if too many requests wait."""


class _Item(NamedTuple):
    work: Work
    sampling: Sampling
    on_done: OnDone


class Worker:
    """Runs requests in the order in which they come.

    Up to `slots` prompts are decoded at the same time. A request joins those that are running if it has the same
    sampling settings and no other request waits before it; otherwise it waits until they have ended.
    """

    def __init__(self, model: SpeechModel, *, slots: int = 4, most_waiting: int = 16):
        """Starts the thread.

        Args:
          model: the model.
          slots: prompts that are decoded at the same time.
          most_waiting: largest number of requests that wait; further ones are refused.
        """
        self.model, self._slots, self._most = model, slots, most_waiting
        self._waiting: deque[_Item] = deque()
        self._running: dict[Work, _Item] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="model", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        task: str,
        options: TaskOptions,
        on_done: OnDone,
        *,
        sampling: Sampling | None = None,
        best_of: int = 1,
        on_tokens: OnTokens | None = None,
    ) -> Work:
        """Adds a request; `on_done` is called in the thread of the worker, unless the work is cancelled.

        Raises:
          BusyError: if too many requests wait.
          UserError: if the settings are not valid.
        """
        settings = sampling or find_task(task).sampling
        check_best_of(best_of, settings)
        work = Work(request, task, TaskContext(self.model, options), best_of, on_tokens)
        with self._changed:
            self._waiting = deque(item for item in self._waiting if not item.work.cancelled)
            if len(self._waiting) >= self._most:
                raise BusyError(f"{self._most} requests wait already: try again later")
            self._waiting.append(_Item(work, settings, on_done))
            self._changed.notify()
        return work

    def close(self) -> None:
        """Ends the thread after the present round of tokens."""
        with self._changed:
            self._closed = True
            for item in (*self._waiting, *self._running.values()):
                item.work.cancelled = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                sampling = self._waiting[0].sampling
            try:
                self._run(sampling)
            except Exception:
                # A fault of one round must not end the server: its requests fail, and the next ones are served.
                traceback.print_exc(file=sys.stderr)
                failed, self._running = self._running, {}
                for item in failed.values():
                    item.on_done(
                        UserError("the model failed; the log of the server has the reason")
                    )

    def _run(self, sampling: Sampling) -> None:
        def take() -> Work | None:
            with self._changed:
                while self._waiting and self._waiting[0].work.cancelled:
                    self._waiting.popleft()
                if self._closed or not self._waiting or self._waiting[0].sampling != sampling:
                    return None
                item = self._waiting.popleft()
                self._running[item.work] = item
                return item.work

        # Two frames per round, so that audio is streamed early and requests join soon.
        runner = Runner(self.model, sampling, steps=min(64, 2 * self.model.codebooks),
                        slots=self._slots)  # fmt: skip
        for work, result in runner.run(take):
            self._running.pop(work).on_done(result)
        self._running.clear()  # of cancelled work
