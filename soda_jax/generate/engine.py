"""Implements the batched, jitted decoding loop, with static shapes and a grammar state per row."""

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.errors import UserError
from soda_jax.generate.sampling import Sampling, draw
from soda_jax.model import ModelFunctions
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.grammar import AUDIO_END, ILLEGAL, grammar

# Prompt lengths and budgets are rounded up to multiples of this, so that few programs are compiled.
_BUCKET = 64
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
        normalized over the legal tokens, in nats.
    """

    ids: np.ndarray
    finished: bool
    log_probability: float


class _State(NamedTuple):
    step: jax.Array
    tokens: jax.Array  # [batch, budget]
    position: jax.Array  # [batch], position of the newest token
    automaton: jax.Array  # [batch], grammar state
    frames: jax.Array  # [batch], complete new frames
    done: jax.Array  # [batch]
    forced: jax.Array  # [batch], whether the frame limit ended the row
    score: jax.Array  # [batch], sum of log-probabilities
    logits: jax.Array  # [batch, vocabulary]
    cache: Any


class Engine:
    """Generates continuations of token prompts; each audio frame has `codebooks` tokens."""

    def __init__(
        self, model: ModelFunctions, params: Any, layout: VocabularyLayout, codebooks: int
    ):
        self._params, self._model = params, model
        self._layout, self._codebooks = layout, codebooks
        self._grammar = grammar(layout, codebooks)
        self._run = jax.jit(self._generate, static_argnames=("budget", "sampling", "stop"))

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        *,
        stop: int,
        budget: int,
        sampling: Sampling,
        max_frames: int = 0,
        seed: int = 0,
    ) -> list[Generated]:
        """Continues each prompt until `stop`.

        Args:
          prompts: nonempty prefixes of legal documents, int ids `[tokens]`.
          stop: the id that ends a row; EOS also ends it.
          budget: maximum number of new tokens, at least 1.
          sampling: sampling settings.
          max_frames: number of new frames after which only `audio_end` is legal; 0 for no limit.
          seed: random seed, 0 to 2³² − 1; the random numbers of a row depend only on the seed and
            the row index.

        Raises:
          UserError: if a prompt is not a prefix of a legal document or is a complete document (the
            message contains the index of the prompt), or if `budget`, `max_frames` or `seed` is out
            of range.
        """
        for name, value, least, most in (
            ("budget", budget, 1, _INT32),
            ("max_frames", max_frames, 0, _INT32),
            ("seed", seed, 0, LARGEST_SEED),
        ):
            if not isinstance(value, numbers.Integral) or not least <= value <= most:
                raise UserError(
                    f"{name} {value!r} is out of range: pass an integer from {least} to {most:,}"
                )
        if not len(prompts):
            return []
        states = [self._state_after(prompt, number) for number, prompt in enumerate(prompts)]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        padded = -(-int(lengths.max()) // _BUCKET) * _BUCKET
        tokens = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        limit = max_frames or _INT32
        final = self._run(
            self._params,
            tokens,
            lengths,
            np.array(states, np.int32),
            np.int32(limit),
            np.int32(budget),
            np.uint32(seed),
            budget=-(-budget // _BUCKET) * _BUCKET,
            sampling=sampling,
            stop=stop,
        )
        new, forced, score = jax.device_get(final)
        results = []
        for row in range(len(prompts)):
            ids = new[row, :budget]
            ends = np.flatnonzero((ids == stop) | (ids == self._layout.eos))
            ids = ids[: ends[0] + 1] if len(ends) else ids
            finished = bool(ids[-1] == stop and not forced[row])
            results.append(Generated(ids, finished, float(score[row])))
        return results

    def _state_after(self, prompt: np.ndarray, number: int) -> int:
        """Returns the grammar state after a prompt; raises UserError if no token may follow."""
        rules, prompt = self._grammar, np.asarray(prompt)
        inside = (prompt >= 0) & (prompt < len(rules.group_of_id))
        state = rules.run(prompt) if inside.all() else ILLEGAL
        if state in (ILLEGAL, rules.start):
            raise UserError(f"prompt {number} is not the beginning of a legal document")
        if state == rules.end:
            raise UserError(f"prompt {number} is a complete document: no token may follow its EOS")
        return state

    def _generate(
        self,
        params: Any,
        tokens: jax.Array,
        lengths: jax.Array,
        automaton: jax.Array,
        max_frames: jax.Array,
        limit: jax.Array,
        seed: jax.Array,
        *,
        budget: int,
        sampling: Sampling,
        stop: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        decoder = self._model.bind(params)
        rules = self._grammar
        transitions = jnp.asarray(rules.transitions)
        group_of_id = jnp.asarray(rules.group_of_id)
        boundary = jnp.asarray(rules.frame_boundary)
        batch, padded = tokens.shape
        rows = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
            jnp.arange(batch)
        )
        # Prefill. The cache entries of padding are masked until new tokens overwrite them.
        cache = decoder.empty_cache(batch, padded + budget)
        positions = jnp.broadcast_to(jnp.arange(padded), (batch, padded))
        zero = jnp.zeros((batch,), jnp.int32)
        hidden, cache = decoder.decode(tokens, positions, cache, zero)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        first = _State(
            step=jnp.zeros((), jnp.int32),
            tokens=jnp.zeros((batch, budget), jnp.int32),
            position=lengths - 1,
            automaton=automaton,
            frames=zero,
            done=jnp.zeros((batch,), bool),
            forced=jnp.zeros((batch,), bool),
            score=jnp.zeros((batch,), jnp.float32),
            logits=decoder.logits(last)[:, 0],
            cache=cache,
        )

        def unfinished(state: _State) -> jax.Array:
            return (state.step < limit) & ~state.done.all()

        def step(state: _State) -> _State:
            allowed = transitions[state.automaton] != ILLEGAL
            full = (state.frames >= max_frames) & boundary[state.automaton]
            only_end = jnp.arange(allowed.shape[1]) == AUDIO_END
            legal = jnp.where(full[:, None], allowed & only_end, allowed)[:, group_of_id]
            # A finished row may be in a state without legal tokens; its samples are discarded.
            legal = legal | state.done[:, None]
            keys = jax.vmap(jax.random.fold_in, (0, None))(rows, state.step)
            token, score = draw(keys, state.logits, legal, sampling)
            following = transitions[state.automaton, group_of_id[token]]
            automaton = jnp.where(state.done, state.automaton, following)
            token = jnp.where(state.done, 0, token)
            position = state.position + 1
            hidden, cache = decoder.decode(token[:, None], position[:, None], state.cache, position)
            return _State(
                step=state.step + 1,
                tokens=state.tokens.at[:, state.step].set(token),
                position=position,
                automaton=automaton,
                frames=state.frames + (boundary[automaton] & ~state.done),
                done=state.done | (token == stop) | (automaton == rules.end),
                forced=state.forced | (full & ~state.done),
                score=state.score + jnp.where(state.done, 0.0, score),
                logits=decoder.logits(hidden)[:, 0],
                cache=cache,
            )

        final = jax.lax.while_loop(unfinished, step, first)
        return final.tokens, final.forced, final.score
