"""Runs many task requests at the same time on one engine; results come as soon as they are complete."""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from soda_jax.errors import UserError
from soda_jax.generate.engine import Event, Generated, Job
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import (
    Continuation,
    Prompt,
    Request,
    Result,
    Task,
    TaskContext,
    TaskOptions,
)
from soda_jax.registry import GENERATION_TASKS
from soda_jax.tokens.grammar import ILLEGAL, grammar

OnTokens = Callable[[Prompt, np.ndarray, bool], None]


class Work:
    """A request that is being worked on.

    Attributes:
      request: the request.
      cancelled: set it to True if the result is no longer wanted; the work then has none.
    """

    def __init__(
        self,
        request: Request,
        task: str,
        context: TaskContext,
        best_of: int = 1,
        on_tokens: OnTokens | None = None,
        sampling: Sampling | None = None,
    ):
        """Starts nothing yet.

        Args:
          request: the request.
          task: name of its task.
          context: model and options.
          sampling: sampling settings; by default those of the task.
          best_of: candidates of each prompt, of which the most likely is kept: finished ones before others, then the
            highest mean log-probability per token.
          on_tokens: called with (prompt, new ids, whether it ended) while tokens are generated; only with
            `best_of` 1.

        Raises:
          UserError: if the task is unknown, or the candidates cannot be drawn or streamed.
        """
        kind = find_task(task)
        self.request, self._sampling = request, sampling or kind.sampling
        check_best_of(best_of, self._sampling)
        if on_tokens is not None and best_of > 1:
            raise UserError(f"best_of {best_of} must be 1 if the tokens are streamed")
        self.cancelled = False
        self._context, self._best_of, self.on_tokens = context, best_of, on_tokens
        self._steps = kind.function(context, request)
        self._round = 0  # how often the task has yielded prompts
        self._found: list[list[Continuation]] | None = None
        self._open = 0  # jobs without a result
        layout = context.model.layout
        self._grammar = grammar(layout, context.model.codebooks)
        self._ends = (layout.audio_end, layout.text_end, layout.eos)

    def start(self) -> list[tuple[Job, Prompt, int]] | Result | UserError:
        """Runs the task up to its next prompts or its end.

        Returns:
          for each job (job, prompt, index of the prompt), or the result, or the error.
        """
        best = None
        if self._found is not None:
            best = [max(candidates, key=_likelihood) for candidates in self._found]
        try:
            prompts: list[Prompt] = []
            while not prompts:
                prompts = next(self._steps) if best is None else self._steps.send(best)
                best = []
            jobs = []
            for index, prompt in enumerate(prompts):
                for candidate in range(self._best_of):
                    key = f"{self.request.name}\0{self._round}\0{prompt.piece}\0{candidate}"
                    job = self._context.job(prompt, zlib.crc32(key.encode()) >> 1, self._sampling)
                    self._context.model.engine.check(job)
                    jobs.append((job, prompt, index))
        except StopIteration as stop:
            return stop.value
        except UserError as error:
            return error
        self._round, self._found = self._round + 1, [[] for _ in prompts]
        self._open = len(jobs)
        return jobs

    def add(self, prompt: Prompt, index: int, generated: Generated) -> bool:
        """Adds the result of a job; returns whether it was the last one."""
        assert self._found is not None
        self._found[index].append(self._continuation(prompt, generated))
        self._open -= 1
        return not self._open

    def _continuation(self, prompt: Prompt, generated: Generated) -> Continuation:
        ids = generated.ids
        mean = generated.log_probability / len(ids)
        if not generated.legal:
            ids = ids[: self._legal_length(prompt.ids, ids)]
        elif ids[-1] in self._ends:
            ids = ids[:-1]
        if prompt.kind == "speech":  # without the grammar, it may end inside a frame
            ids = ids[: len(ids) - len(ids) % self._context.model.codebooks]
        return Continuation(ids, generated.finished and generated.legal, mean, generated.legal)

    def _legal_length(self, prompt: np.ndarray, ids: np.ndarray) -> int:
        state = self._grammar.run(prompt)
        for number, token in enumerate(ids.tolist()):
            state = self._grammar.step(state, token)
            if state == ILLEGAL:
                return number
        return len(ids)


class Runner:
    """Runs work on the engine of a model."""

    def __init__(
        self,
        model: SpeechModel,
        *,
        seed: int = 0,
        constrained: bool = True,
        steps: int = 0,
        slots: int = 0,
    ):
        """Sets the settings, which are those of `Engine.stream`."""
        self._model, self._seed, self._constrained = model, seed, constrained
        self._steps, self._slots = steps, slots

    def run(self, take: Callable[[], Work | None]) -> Iterator[tuple[Work, Result | UserError]]:
        """Yields (work, result or the error of this work), in the order in which they end.

        Args:
          take: returns the next work, or None if there is none now. It is called whenever slots are free;
            the run ends when all work is done.
        """
        engine = self._model.engine
        ready: deque[tuple[Job, Prompt, int, Work]] = deque()
        done: deque[tuple[Work, Result | UserError]] = deque()
        active: dict[int, tuple[Prompt, int, Work]] = {}  # by job
        count = slots = 0  # jobs and slots of the stream

        def advance(work: Work) -> None:
            started = work.start()
            if isinstance(started, list):
                ready.extend((*job, work) for job in started)
            else:
                done.append((work, started))

        def fill(free: int) -> list[Job]:
            nonlocal count
            # One more group of jobs waits, so that a free slot is filled at once.
            while len(ready) < free + engine.slots // 4:
                work = take()
                if work is None:
                    break
                advance(work)
            if not self._slots and 0 < slots < min(engine.slots, len(ready)):
                return []  # this stream ends soon, and one with more slots follows
            jobs = []
            for job, prompt, index, work in ready:
                if not work.cancelled:
                    jobs.append(job)
                    active[count] = prompt, index, work
                    count += 1
            ready.clear()
            return jobs

        def dropped() -> list[int]:
            gone = [job for job, (_, _, work) in active.items() if work.cancelled]
            for job in gone:
                del active[job]
            return gone

        def handle(event: Event) -> None:
            if event.job not in active:
                return  # cancelled while its tokens were generated
            prompt, index, work = active[event.job]
            if work.on_tokens is not None:
                work.on_tokens(prompt, event.ids, event.result is not None)
            if event.result is None:
                return
            del active[event.job]
            if work.add(prompt, index, event.result) and not work.cancelled:
                advance(work)

        while True:
            count = slots = 0
            active.clear()
            jobs = fill(self._slots or engine.slots)
            if not jobs:
                break
            slots = self._slots or min(engine.slots, 1 << (len(jobs) - 1).bit_length())
            stream = engine.stream(
                jobs, seed=self._seed, constrained=self._constrained, steps=self._steps,
                slots=slots, more=fill, dropped=dropped,
            )  # fmt: skip
            for event in stream:
                handle(event)
                while done:
                    yield done.popleft()
        while done:
            yield done.popleft()


class Pipeline:
    """Runs requests of one task with one set of options.

    Attributes:
      context: model and options, as the task receives them.
    """

    def __init__(
        self,
        model: SpeechModel,
        task: str,
        options: TaskOptions | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        best_of: int = 1,
        constrained: bool = True,
        steps: int = 0,
        on_tokens: OnTokens | None = None,
    ):
        """Checks the arguments.

        Args:
          model: the model.
          task: name of a task, such as "speak".
          options: options of the task.
          sampling: sampling settings; by default those of the task.
          seed: random seed. The random numbers of a request depend only on it, the name of the request, the
            piece and the candidate.
          best_of, on_tokens: see `Work`.
          constrained: False samples without the grammar.
          steps: tokens after which `on_tokens` is called, see `Engine.stream`.

        Raises:
          UserError: if the task is unknown, or `best_of` is out of range.
        """
        self._sampling = sampling or find_task(task).sampling
        check_best_of(best_of, self._sampling)
        self.context = TaskContext(model, options or TaskOptions())
        self._task, self._best_of, self._on_tokens = task, best_of, on_tokens
        self._runner = Runner(model, seed=seed, constrained=constrained, steps=steps)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Result | UserError]]:
        """Yields (request, result or the error of this request), in the order in which they end."""
        source = iter(requests)

        def take() -> Work | None:
            request = next(source, None)
            if request is None:
                return None
            return Work(
                request, self._task, self.context, self._best_of, self._on_tokens, self._sampling
            )

        return ((work.request, result) for work, result in self._runner.run(take))

    def __call__(self, requests: Iterable[Request]) -> list[Result]:
        """Returns the results in the order of the requests; raises the first error."""
        requests = list(requests)
        found = {id(request): result for request, result in self.run(requests)}
        results = []
        for request in requests:
            result = found[id(request)]
            if isinstance(result, UserError):
                raise result
            results.append(result)
        return results


def streaming_steps(model: SpeechModel) -> int:
    """Returns the tokens of a round when audio is streamed: two frames, so that it is heard early."""
    return min(64, 2 * model.codebooks)


def find_task(name: str) -> Task:
    """Returns a task; raises UserError if it is unknown."""
    return GENERATION_TASKS.get(name, "task")  # type: ignore[return-value]


def check_best_of(best_of: int, sampling: Sampling) -> None:
    """Raises UserError if this number of candidates cannot be drawn."""
    if best_of < 1:
        raise UserError(f"best_of {best_of} must be at least 1")
    if best_of > 1 and sampling.temperature == 0:
        raise UserError(
            f"best_of {best_of} needs candidates that differ: use a temperature above 0"
        )


def _likelihood(found: Continuation) -> tuple[bool, bool, float]:
    return found.legal, found.finished, found.mean_log_probability
