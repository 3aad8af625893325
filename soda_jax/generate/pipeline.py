"""Runs many task requests at the same time on one engine; results come as soon as they are complete."""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from soda_jax.errors import UserError
from soda_jax.generate.engine import Generated, Job
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import (
    Continuation,
    Prompt,
    Request,
    Result,
    Steps,
    Task,
    TaskContext,
    TaskOptions,
)
from soda_jax.registry import GENERATION_TASKS
from soda_jax.tokens.grammar import ILLEGAL, grammar

Finished = tuple[Request, Result | UserError]
OnTokens = Callable[[Request, Prompt, np.ndarray, bool], None]


class _Candidate(NamedTuple):
    """A job: candidate of a prompt of a running request."""

    running: "_Running"
    prompt: int


class _Running:
    """A request whose task has yielded prompts."""

    def __init__(self, request: Request, steps: Steps):
        self.request, self.steps = request, steps
        self.prompts: list[Prompt] = []
        self.found: list[list[Continuation]] = []
        self.open = 0  # jobs without a result


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
          seed: random seed. The random numbers of a request depend only on it, the name of the request, the piece and the candidate.
          best_of: number of candidates of each prompt, of which the most likely is kept: finished ones before
            others, then the highest mean log-probability per token.
          constrained: False samples without the grammar.
          steps: tokens after which `on_tokens` is called, see `Engine.stream`.
          on_tokens: called with (request, prompt, new ids, whether it ended) while tokens are generated; only
            with `best_of` 1.

        Raises:
          UserError: if the task is unknown, or `best_of` is out of range.
        """
        self._task: Task = GENERATION_TASKS.get(task, "task")  # type: ignore[assignment]
        check_best_of(best_of, sampling or self._task.sampling)
        if on_tokens is not None and best_of > 1:
            raise UserError(f"best_of {best_of} must be 1 if the tokens are streamed")
        self.context = TaskContext(model, options or TaskOptions())
        self._sampling, self._seed = sampling or self._task.sampling, seed
        self._best_of, self._constrained, self._steps = best_of, constrained, steps
        self._on_tokens = on_tokens
        self._grammar = grammar(model.layout, model.codebooks)

    def run(self, requests: Iterable[Request]) -> Iterator[Finished]:
        """Yields (request, result or the error of this request), in the order in which they end."""
        source, engine = iter(requests), self.context.model.engine
        ready: deque[tuple[Job, _Candidate]] = deque()
        done: deque[Finished] = deque()
        owners: list[_Candidate] = []

        def fill(count: int) -> list[Job]:
            # Jobs of running requests go first. One more group of slots waits, so that a free slot is filled at once.
            while len(ready) < count + engine.slots // 4:
                request = next(source, None)
                if request is None:
                    break
                self._start(request, ready, done)
            jobs = [job for job, _ in ready]
            owners.extend(owner for _, owner in ready)
            ready.clear()
            return jobs

        while jobs := fill(engine.slots):
            stream = engine.stream(
                jobs, sampling=self._sampling, seed=self._seed, constrained=self._constrained,
                steps=self._steps, more=fill,
            )  # fmt: skip
            for event in stream:
                running, number = owner = owners[event.job]
                if self._on_tokens is not None:
                    ended = event.result is not None
                    self._on_tokens(running.request, running.prompts[number], event.ids, ended)
                if event.result is not None:
                    self._collect(owner, event.result, ready, done)
                yield from _drain(done)
            owners.clear()
        yield from _drain(done)

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

    def _start(
        self, request: Request, ready: deque[tuple[Job, _Candidate]], done: deque[Finished]
    ) -> None:
        running = _Running(request, self._task.function(self.context, request))
        self._advance(running, None, ready, done)

    def _advance(
        self,
        running: _Running,
        found: list[Continuation] | None,
        ready: deque[tuple[Job, _Candidate]],
        done: deque[Finished],
    ) -> None:
        """Runs a task up to its next prompts or its end."""
        try:
            while True:
                prompts = next(running.steps) if found is None else running.steps.send(found)
                if prompts:
                    break
                found = []
            jobs = []
            for number, prompt in enumerate(prompts):
                for candidate in range(self._best_of):
                    key = f"{running.request.name}\0{prompt.piece}\0{candidate}"
                    job = self.context.job(prompt, zlib.crc32(key.encode()) >> 1)
                    self.context.model.engine.check(job)
                    jobs.append((job, _Candidate(running, number)))
        except StopIteration as stop:
            done.append((running.request, stop.value))
        except UserError as error:
            done.append((running.request, error))
        else:
            running.prompts, running.found = prompts, [[] for _ in prompts]
            running.open = len(jobs)
            ready.extend(jobs)

    def _collect(
        self,
        candidate: _Candidate,
        generated: Generated,
        ready: deque[tuple[Job, _Candidate]],
        done: deque[Finished],
    ) -> None:
        running, number = candidate
        prompt = running.prompts[number]
        running.found[number].append(self._continuation(prompt, generated))
        running.open -= 1
        if not running.open:
            best = [max(some, key=_likelihood) for some in running.found]
            self._advance(running, best, ready, done)

    def _continuation(self, prompt: Prompt, generated: Generated) -> Continuation:
        ids, layout = generated.ids, self.context.model.layout
        mean = generated.log_probability / len(ids)
        if not generated.legal:
            ids = ids[: self._legal_length(prompt.ids, ids)]
        elif ids[-1] in (layout.audio_end, layout.text_end, layout.eos):
            ids = ids[:-1]
        if prompt.kind == "speech":  # without the grammar, it may end inside a frame
            ids = ids[: len(ids) - len(ids) % self.context.model.codebooks]
        return Continuation(ids, generated.finished and generated.legal, mean, generated.legal)

    def _legal_length(self, prompt: np.ndarray, ids: np.ndarray) -> int:
        state = self._grammar.run(prompt)
        for number, token in enumerate(ids.tolist()):
            state = self._grammar.step(state, token)
            if state == ILLEGAL:
                return number
        return len(ids)


def check_best_of(best_of: int, sampling: Sampling) -> None:
    """Raises UserError if this number of candidates cannot be drawn."""
    if best_of < 1:
        raise UserError(f"best_of {best_of} must be at least 1")
    if best_of > 1 and sampling.temperature == 0:
        raise UserError(
            f"best_of {best_of} needs candidates that differ: use a temperature above 0"
        )


def _drain(done: deque[Finished]) -> Iterator[Finished]:
    while done:
        yield done.popleft()


def _likelihood(found: Continuation) -> tuple[bool, bool, float]:
    return found.legal, found.finished, found.mean_log_probability
