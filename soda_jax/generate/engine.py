"""Continues token prompts in batches: the grammar limits the tokens, and rows are replaced when done.

The batch has a fixed number of slots. A prompt is prefilled, takes a free slot, and leaves it with its
last token; waiting prompts take the slots that become free. The cache of keys and values grows in
steps during a call, to the length of its longest row. One program is compiled for each shape.
"""

import dataclasses
import numbers
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.errors import UserError
from soda_jax.generate.legal_head import draw_any, draw_legal
from soda_jax.generate.sampling import GREEDY, RowSampling, Sampling
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoding
from soda_jax.model.legal import legal_sets
from soda_jax.model.placement import ONE_DEVICE, OneDevice, Placement
from soda_jax.progress import track
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.grammar import ILLEGAL
from soda_jax.tokens.partition import partition

# Steps of one call of the decoding program, after which the host looks for finished rows.
_STEPS = 64
_SHORTEST = 256
# Largest number of attention scores per head in a prefill, which limits its memory.
_MOST_SCORES = 1 << 24
_INT32 = 2**31 - 1
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """The continuation of a prompt.

    Attributes:
      ids: the new tokens up to and including the stop token or EOS, int32 `[tokens]`.
      finished: whether the model generated the stop token before it reached the budget or the
        frame limit.
      log_probability: sum of the log-probabilities of the new tokens at temperature 1, each
        normalized over the legal tokens, or over all tokens without the grammar, in nats.
      legal: whether prompt and continuation are a prefix of a legal document; always True with the
        grammar.
    """

    ids: np.ndarray
    finished: bool
    log_probability: float
    legal: bool = True


class Job(NamedTuple):
    """A prompt to be continued.

    Attributes:
      prompt: nonempty prefix of a legal document, int ids `[tokens]`.
      stop: the id that ends the row; EOS also ends it.
      budget: maximum number of new tokens, at least 1.
      max_frames: number of new frames after which only `audio_end` is legal; 0 for no limit.
      number: determines, with the seed, the random numbers of the row, 0 to 2³¹ − 1.
      sampling: sampling settings.
    """

    prompt: np.ndarray
    stop: int
    budget: int
    max_frames: int = 0
    number: int = 0
    sampling: Sampling = GREEDY


class Event(NamedTuple):
    """New tokens of a job.

    Attributes:
      job: index of the job, in the order in which the jobs were given.
      ids: new tokens since the last event of the job, int32 `[tokens]`.
      result: the whole continuation if the job has ended, else None.
    """

    job: int
    ids: np.ndarray
    result: Generated | None


class _Limits(NamedTuple):
    """What ends each slot, int32 `[slots]`, see `Job`."""

    stop: np.ndarray
    budget: np.ndarray
    max_frames: np.ndarray


class _Rows(NamedTuple):
    """The state of every slot; arrays `[slots]`."""

    hidden: jax.Array  # [slots, d], of the newest token
    position: jax.Array  # of the newest token
    automaton: jax.Array  # grammar state; ILLEGAL after a token that is not legal
    prompt: jax.Array  # number of the prompt, which determines the random numbers
    length: jax.Array  # number of new tokens
    frames: jax.Array  # complete new frames
    done: jax.Array  # also True for an empty slot
    forced: jax.Array  # whether the frame limit ended the row
    score: jax.Array  # sum of log-probabilities


class Engine:
    """Generates continuations of token prompts; each audio frame has `codebooks` tokens.

    Attributes:
      dtype: dtype of the weights, see `soda_jax.model.decoding`.
      slots: largest number of rows that are decoded at the same time.
    """

    def __init__(
        self,
        model: ModelFunctions,
        params: Any,
        layout: VocabularyLayout,
        codebooks: int,
        *,
        dtype: str = "",
        slots: int = 16,
        placement: Placement = ONE_DEVICE,
    ):
        """Casts the weights.

        Args:
          model: the decoder.
          params: its parameters, f32.
          layout: vocabulary layout.
          codebooks: number of codebooks in the stream.
          dtype: "float32", "bfloat16" or "int8"; by default float32 on a CPU, else bfloat16.
          slots: largest number of rows that are decoded at the same time; on a mesh, a multiple of the
            devices that split the batch.
          placement: the mesh of `params`.

        Raises:
          UserError: for an unknown dtype, or if `slots` is below 1.
        """
        if slots < 1:
            raise UserError(f"slots {slots} must be at least 1")
        platform = next(iter(jax.tree.leaves(params)[0].devices())).platform
        self.dtype, self.slots = dtype or decoding.default_dtype(platform), slots
        self._layout, self._config = layout, model.config
        self._placement = OneDevice(platform) if placement.devices == 1 else placement
        self._partition = partition(layout, codebooks)
        sets = self._partition.sets
        self._legal = legal_sets(VocabularyBlocks.of(layout), sets, [1] * len(sets))
        self._weights = decoding.decoding_weights(model.config, params, self.dtype, self._placement)
        self._wide = decoding.activation_dtype(self.dtype, platform)
        self._prefill = jax.jit(self._prefilled)
        self._admit = jax.jit(self._admitted, donate_argnums=0)
        self._grow = jax.jit(self._grown, static_argnames="length")
        self._decode = jax.jit(self._decoded, donate_argnums=1, static_argnames="constrained")
        self._end = jax.jit(self._ended, donate_argnums=0)

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        *,
        stop: int,
        budget: int,
        sampling: Sampling,
        max_frames: int = 0,
        seed: int = 0,
        progress: str = "",
        constrained: bool = True,
        prompt_numbers: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Continues each prompt until `stop`.

        Args:
          prompts: nonempty prefixes of legal documents, int ids `[tokens]`.
          stop: the id that ends a row; EOS also ends it.
          budget: maximum number of new tokens, at least 1.
          sampling: sampling settings.
          max_frames: number of new frames after which only `audio_end` is legal; 0 for no limit.
          seed: random seed, 0 to 2³² − 1; the random numbers of a row depend only on the seed and
            the number of its prompt.
          progress: label of the progress display; none if empty.
          constrained: False samples from all ids, without the grammar and without `max_frames`.
          prompt_numbers: the number of each prompt, from 0; by default its index. A caller that continues
            a list in parts gives the same results with the numbers in the whole list.

        Raises:
          UserError: if a prompt is not a prefix of a legal document or is a complete document (the
            message contains the index of the prompt), or if `budget`, `max_frames` or `seed` is out
            of range.
        """
        numbers_ = range(len(prompts)) if prompt_numbers is None else prompt_numbers
        jobs = [
            Job(prompt, stop, budget, max_frames, number, sampling)
            for prompt, number in zip(prompts, numbers_, strict=True)
        ]
        events = self.stream(jobs, seed=seed, constrained=constrained)
        finished: Iterable[tuple[int, Generated]] = (
            (e.job, e.result) for e in events if e.result is not None
        )
        if progress:
            finished = track(finished, progress, len(prompts))
        results = dict(finished)
        return [results[number] for number in range(len(prompts))]

    def check(self, job: Job, index: int = 0) -> None:
        """Raises UserError if a job cannot be continued; the message contains its index."""
        self._state_after(job.prompt, index)
        for name, value, least, most in (
            ("budget", job.budget, 1, _INT32),
            ("max_frames", job.max_frames, 0, _INT32),
            ("number", job.number, 0, _INT32),
        ):
            _check_range(name, value, least, most)

    def stream(
        self,
        jobs: Sequence[Job],
        *,
        seed: int = 0,
        constrained: bool = True,
        steps: int = 0,
        slots: int = 0,
        more: Callable[[int], Sequence[Job]] | None = None,
        dropped: Callable[[], Collection[int]] = tuple,
    ) -> Iterator[Event]:
        """Continues jobs and yields their tokens while they are generated.

        Args:
          jobs: the first jobs.
          seed, constrained: see `__call__`.
          steps: tokens per row after which the events are yielded, at most 64, which is the default.
          slots: rows that are decoded at the same time; by default as many as there are jobs, at most `self.slots`.
          more: called with the number of free slots before each round; returns further jobs. The stream ends
            when there are no jobs left.
          dropped: called before each round; returns the indices of jobs that are no longer wanted. They yield
            no further event.

        Raises:
          UserError: as `check`, or if `seed` is out of range.
        """
        _check_range("seed", seed, 0, LARGEST_SEED)
        if not 0 <= steps <= _STEPS:
            raise UserError(f"steps {steps} must be from 0 to {_STEPS}")
        known = list(jobs)
        for index, job in enumerate(known):
            self.check(job, index)
        return self._events(
            known, seed, constrained, steps or _STEPS, slots, more or (lambda free: ()), dropped
        )

    def _events(
        self,
        first: list[Job],
        seed: int,
        constrained: bool,
        steps: int,
        slots: int,
        more: Callable[[int], Sequence[Job]],
        dropped: Callable[[], Collection[int]],
    ) -> Iterator[Event]:
        if not first:
            return
        jobs = dict(enumerate(first))  # without the jobs that have ended
        count = len(jobs)

        def size(index: int) -> int:
            return len(jobs[index].prompt)

        # Prompts of similar length are prefilled together.
        waiting = deque(sorted(jobs, key=size))
        slots = slots or min(_power_of_two(len(jobs)), self.slots)
        owner = np.full(slots, -1)
        length = _bucket(max(map(size, list(waiting)[:slots])) + 1)
        state = self._empty(slots, length)
        limits = _Limits(*np.ones((3, slots), np.int32))
        settings = [GREEDY] * slots
        found: dict[int, list[np.ndarray]] = {}
        while waiting or (owner >= 0).any():
            if unwanted := jobs.keys() & set(dropped()):
                waiting = deque(index for index in waiting if index not in unwanted)
                gone = np.isin(owner, list(unwanted))
                owner[gone] = -1
                state = self._end(state, gone)
                for index in unwanted:
                    del jobs[index]
                    found.pop(index, None)
            free = np.flatnonzero(owner < 0)
            for job in more(len(free) - len(waiting)):
                self.check(job, count)
                waiting.append(count)
                jobs[count] = job
                count += 1
            while waiting and len(free):
                next_ = [waiting[n] for n in range(min(len(free), len(waiting)))]
                most = max(1, min(slots, _MOST_SCORES // _bucket(max(map(size, next_))) ** 2))
                chosen = [waiting.popleft() for _ in range(min(len(next_), most))]
                owner[free[: len(chosen)]] = chosen
                for slot, index in zip(free, chosen, strict=False):
                    job, found[index] = jobs[index], []
                    limits.stop[slot], limits.budget[slot] = job.stop, job.budget
                    limits.max_frames[slot] = job.max_frames or _INT32
                    settings[slot] = job.sampling
                new = self._prefill_prompts(chosen, jobs, free, most)
                prefilled = new[1][0].key.shape[2]
                if prefilled > length:
                    length, state = prefilled, self._grow(state, length=prefilled)
                state = self._admit(state, *new)
                free = free[len(chosen) :]
            busy = owner >= 0
            if not busy.any():
                continue
            room = length - 1 - int(np.asarray(state[0].position)[busy].max())
            if room < 1:
                length = _bucket(length + 1)
                state = self._grow(state, length=length)
                continue
            used = [s if is_busy else GREEDY for s, is_busy in zip(settings, busy, strict=True)]
            state, tokens = self._decode(
                self._weights,
                state,
                np.int32(min(room, steps)),
                # A copy, because a transfer may still read the array when the next job changes it.
                _Limits(*(np.array(limit) for limit in limits)),
                RowSampling.of(used),
                np.uint32(seed),
                # Prompts are prefilled in groups, because a short prefill is hardly faster.
                np.int32(min(len(waiting), -(-slots // 4)) or slots),
                constrained=constrained,
            )
            tokens, rows = jax.device_get((tokens, state[0]._replace(hidden=None)))
            for slot in np.flatnonzero(busy):
                index, new_ids = int(owner[slot]), tokens[slot][tokens[slot] >= 0]
                found[index].append(new_ids)
                result = None
                if rows.done[slot]:
                    ids = np.concatenate(found.pop(index))
                    finished = bool(ids[-1] == limits.stop[slot] and not rows.forced[slot])
                    owner[slot] = -1
                    del jobs[index]
                    legal = bool(rows.automaton[slot] != ILLEGAL)
                    result = Generated(ids, finished, float(rows.score[slot]), legal)
                yield Event(index, new_ids, result)

    def _state_after(self, prompt: np.ndarray, number: int) -> int:
        """Returns the grammar state after a prompt; raises UserError if no token may follow."""
        rules, prompt = self._partition.rules, np.asarray(prompt)
        inside = (prompt >= 0) & (prompt < len(rules.group_of_id))
        state = rules.run(prompt) if inside.all() else ILLEGAL
        if state in (ILLEGAL, rules.start):
            raise UserError(f"prompt {number} is not the beginning of a legal document")
        if state == rules.end:
            raise UserError(f"prompt {number} is a complete document: no token may follow its EOS")
        return state

    def _empty(self, slots: int, length: int) -> tuple[_Rows, list[decoding.Cache]]:
        def zeros(kind: Any = jnp.int32) -> jax.Array:
            return jnp.zeros((slots,), kind)

        hidden = jnp.zeros((slots, self._config.hidden_size), self._wide)
        done = jnp.ones((slots,), bool)
        rows = _Rows(hidden, zeros(), zeros(), zeros(), zeros(), zeros(), done, zeros(bool),
                     zeros(jnp.float32))  # fmt: skip
        return rows, decoding.empty_cache(self._config, slots, length, self._wide)

    def _prefill_prompts(
        self,
        chosen: Sequence[int],
        jobs: Mapping[int, Job],
        free: np.ndarray,
        most: int,
    ) -> tuple[Any, ...]:
        """Returns the arguments of `_admitted` after the state; unused rows have no slot."""
        count = min(n for n in (1, min(4, most), most) if n >= len(chosen))
        lengths = np.ones(count, np.int32)
        lengths[: len(chosen)] = [len(jobs[n].prompt) for n in chosen]
        tokens = np.zeros((count, _bucket(int(lengths.max()))), np.int32)
        for row, number in enumerate(chosen):
            tokens[row, : lengths[row]] = jobs[number].prompt
        slots = np.full(count, _INT32, np.int32)
        slots[: len(chosen)] = free[: len(chosen)]
        automaton, numbers_ = np.zeros((2, count), np.int32)
        automaton[: len(chosen)] = [self._state_after(jobs[n].prompt, n) for n in chosen]
        numbers_[: len(chosen)] = [jobs[n].number for n in chosen]
        hidden, caches = self._prefill(self._weights, tokens, lengths)
        return hidden, caches, slots, lengths, automaton, numbers_

    def _prefilled(self, weights: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        hidden, caches = decoding.prefill(
            self._config, weights, tokens, self._wide, self._placement
        )
        return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0], caches

    def _admitted(
        self,
        state: tuple[_Rows, list[decoding.Cache]],
        hidden: jax.Array,
        new_caches: list[decoding.Cache],
        slots: jax.Array,
        lengths: jax.Array,
        automaton: jax.Array,
        prompt: jax.Array,
    ) -> tuple[_Rows, list[decoding.Cache]]:
        """Puts prefilled prompts into slots."""
        rows, caches = state
        zero, no = jnp.zeros_like(lengths), jnp.zeros(lengths.shape, bool)
        new = _Rows(hidden, lengths - 1, automaton, prompt, zero, zero, no, no,
                    zero.astype(jnp.float32))  # fmt: skip
        rows = jax.tree.map(lambda old, n: old.at[slots].set(n, mode="drop"), rows, new)
        caches = jax.tree.map(
            lambda old, n: old.at[slots, :, : n.shape[2]].set(n, mode="drop"), caches, new_caches
        )
        return rows, caches

    def _ended(
        self, state: tuple[_Rows, list[decoding.Cache]], gone: jax.Array
    ) -> tuple[_Rows, list[decoding.Cache]]:
        """Empties slots, `gone` is bool `[slots]`."""
        rows, caches = state
        return rows._replace(done=rows.done | gone), caches

    def _grown(
        self, state: tuple[_Rows, list[decoding.Cache]], *, length: int
    ) -> tuple[_Rows, list[decoding.Cache]]:
        """Extends the cache to `length` tokens."""

        def extend(array: jax.Array) -> jax.Array:
            return jnp.pad(array, ((0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)))

        return state[0], jax.tree.map(extend, state[1])

    def _decoded(
        self,
        weights: Any,
        state: tuple[_Rows, list[decoding.Cache]],
        steps: jax.Array,
        limits: _Limits,
        sampling: RowSampling,
        seed: jax.Array,
        most_done: jax.Array,
        *,
        constrained: bool,
    ) -> tuple[tuple[_Rows, list[decoding.Cache]], jax.Array]:
        """Decodes at most `steps` tokens per row, or until `most_done` slots are free.

        Returns:
          the new state, and the new tokens, int32 `[slots, _STEPS]`, −1 where there is none.
        """
        rules, end = self._partition, self._layout.audio_end
        transitions = jnp.asarray(rules.rules.transitions)
        group_of_id = jnp.asarray(rules.rules.group_of_id)
        set_of_state = jnp.asarray(rules.set_of_state)
        boundary = jnp.asarray(rules.rules.frame_boundary)
        key = jax.random.key(seed)

        def unfinished(carry: Any) -> jax.Array:
            step, (rows, _), _ = carry
            return (step < steps) & (rows.done.sum() < most_done)

        def advance(carry: Any) -> Any:
            step, (rows, caches), out = carry
            active = ~rows.done
            lost = rows.automaton == ILLEGAL
            state = jnp.where(lost, 0, rows.automaton)
            full = (rows.frames >= limits.max_frames) & boundary[state] & constrained
            keys = jax.vmap(
                lambda prompt, count: jax.random.fold_in(jax.random.fold_in(key, prompt), count)
            )(rows.prompt, rows.length)
            if constrained:
                only = jnp.where(full, end, -1)
                token, score = draw_legal(
                    self._legal, weights, keys, rows.hidden, set_of_state[state], active, only,
                    sampling, self._placement,
                )  # fmt: skip
            else:
                vocabulary = self._legal.vocabulary
                token, score = draw_any(
                    vocabulary, weights, keys, rows.hidden, sampling, self._placement
                )
            token = jnp.where(active, token, 0)
            following = jnp.where(lost, ILLEGAL, transitions[state, group_of_id[token]])
            automaton = jnp.where(active, following, rows.automaton)
            position = rows.position + active
            hidden, caches = decoding.decode(
                self._config, weights, token, position, caches, self._wide, self._placement
            )
            count = rows.length + active
            ended = (token == limits.stop) | (token == self._layout.eos) | (count >= limits.budget)
            rows = _Rows(
                hidden=hidden,
                position=position,
                automaton=automaton,
                prompt=rows.prompt,
                length=count,
                frames=rows.frames + (boundary[automaton] & (automaton != ILLEGAL) & active),
                done=rows.done | ended,
                forced=rows.forced | (full & active),
                score=rows.score + jnp.where(active, score, 0.0),
            )
            return step + 1, (rows, caches), out.at[:, step].set(jnp.where(active, token, -1))

        out = jnp.full((len(state[0].done), _STEPS), -1, jnp.int32)
        _, state, out = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state, out))
        return state, out


def _check_range(name: str, value: Any, least: int, most: int) -> None:
    integral = isinstance(value, numbers.Integral)
    if not integral or not least <= value <= most:
        raise UserError(
            f"{name} {value!r} is out of range: pass an integer from {least} to {most:,}"
        )


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def _bucket(length: int) -> int:
    """Returns the smallest size of a cache with room for `length` tokens: 256, 512, 768, 1024, 1536, …"""
    size = max(_SHORTEST, _power_of_two(length))
    return size * 3 // 4 if size > 512 and length <= size * 3 // 4 else size
