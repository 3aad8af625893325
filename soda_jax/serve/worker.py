"""One thread that runs the requests of a server together on one model."""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable

from soda_jax.errors import UserError
from soda_jax.generate.pipeline import OnTokens, Runner, Work, streaming_steps
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import Request, Result, TaskContext, TaskOptions

OnDone = Callable[[Result | UserError], None]


class BusyError(UserError):
    """Raised if too many requests wait."""


class Worker:
    """Starts requests in the order in which they come; up to `slots` prompts are decoded at the same time."""

    def __init__(self, model: SpeechModel, *, slots: int = 4, most_waiting: int = 16):
        """Starts the thread.

        Args:
          model: the model.
          slots: prompts that are decoded at the same time.
          most_waiting: largest number of requests that wait; further ones are refused.
        """
        self.model, self._slots, self._most = model, slots, most_waiting
        self._waiting: deque[Work] = deque()
        self._on_done: dict[Work, OnDone] = {}  # of waiting and running requests
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

        Results have codes but no audio, because decoding it here would delay the other requests.

        Raises:
          BusyError: if too many requests wait.
          UserError: if the settings are not valid.
        """
        context = TaskContext(self.model, options, decodes=False)
        work = Work(request, task, context, best_of, on_tokens, sampling)
        with self._changed:
            self._forget_cancelled()
            if self._closed:
                raise BusyError("the server stops")
            if len(self._waiting) >= self._most:
                raise BusyError(f"{self._most} requests wait already: try again later")
            self._waiting.append(work)
            self._on_done[work] = on_done
            self._changed.notify()
        return work

    def stop(self) -> None:
        """Ends all requests with an error, and the thread after the present round of tokens."""
        with self._changed:
            self._closed = True
            for work in self._on_done:
                work.cancelled = True
            ended, self._on_done = self._on_done, {}
            self._waiting.clear()
            self._changed.notify()
        _answer(ended.values(), UserError("the server stops"))

    def close(self) -> None:
        """Calls `stop` and waits for the thread."""
        self.stop()
        self._thread.join(timeout=60)

    def _forget_cancelled(self) -> None:
        self._waiting = deque(work for work in self._waiting if not work.cancelled)
        self._on_done = {w: done for w, done in self._on_done.items() if not w.cancelled}

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            try:
                self._run()
            except Exception:
                # The requests that run fail, and the next ones are served.
                traceback.print_exc(file=sys.stderr)
                with self._changed:
                    waiting = set(self._waiting)
                    failed = [d for work, d in self._on_done.items() if work not in waiting]
                    self._on_done = {w: d for w, d in self._on_done.items() if w in waiting}
                _answer(failed, UserError("the model failed; the log of the server has the reason"))

    def _run(self) -> None:
        def take() -> Work | None:
            with self._changed:
                self._forget_cancelled()
                return self._waiting.popleft() if self._waiting else None

        runner = Runner(self.model, steps=streaming_steps(self.model), slots=self._slots)
        for work, result in runner.run(take):
            with self._changed:
                done = self._on_done.pop(work, None)
            if done is not None:
                _answer([done], result)


def _answer(callbacks: Iterable[OnDone], result: Result | UserError) -> None:
    """Calls callbacks; one that raises, such as for an event loop that has ended, is reported."""
    for on_done in callbacks:
        try:
            on_done(result)
        except Exception:
            traceback.print_exc(file=sys.stderr)
