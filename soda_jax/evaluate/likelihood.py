"""Scores token sequences with the loss of training: Σ −log p of chosen tokens, by class of token.

Every row of a batch is one sequence with its own number in `source`, so the sums by source and class of
`token_losses` are those of the sequences. Sequences of similar length share a batch, and one
program is compiled for each of a few lengths.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.data.legal import NO_SET
from soda_jax.data.windows import empty_batch
from soda_jax.evaluate.loss import in_float32
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.model import Decoder, VocabularyBlocks
from soda_jax.model.legal import legal_sets
from soda_jax.model.loss import token_losses
from soda_jax.parallel import rules
from soda_jax.tokens.partition import joint_sets, partition

HEADS = ("full", "legal")
# Tokens of a batch by platform. Smaller batches need less padding.
_BATCH_TOKENS = {"cpu": 2048}
_MORE_TOKENS = 8192
_SHORTEST = 64
# Positions whose logits exist at the same time in the search for the most likely ids.
_GREEDY_POSITIONS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredSequence:
    """A legal beginning of a document, or a part of one, and the range of its tokens that are scored.

    Attributes:
      ids: int32 `[tokens]`; the first one, such as BOS, cannot be scored.
      first, last: the scored tokens are `ids[first:last]`.
      before: tokens of the document before `ids`, which the model does not see; they determine which ids
        are legal. Empty if `ids` begins with BOS.
    """

    ids: np.ndarray
    first: int
    last: int
    before: Sequence[int] = ()


class TokenSums(NamedTuple):
    """Sums over the scored tokens of a sequence.

    Attributes:
      nll: Σ −log p in nats by class of token, f64 `[classes]`.
      tokens: number of tokens by class, f64 `[classes]`.
      greedy: whether each scored token is the most likely one of its normalizer (the lowest of equal ones);
        None if this was not requested.
    """

    nll: np.ndarray
    tokens: np.ndarray
    greedy: bool | None = None


class Likelihood(Protocol):
    """What a benchmark needs of a model; `ModelLikelihood` implements it for a checkpoint."""

    heads: tuple[str, ...]
    class_names: tuple[str, ...]

    def __call__(
        self, sequences: Sequence[ScoredSequence]
    ) -> Iterator[tuple[list[int], Mapping[str, list[TokenSums]]]]:
        """Yields, for each batch, the indices of its sequences and their sums by head."""
        ...


class ModelLikelihood:
    """Scores sequences with a checkpoint, in f32 on every platform.

    Choices often differ by less than the rounding of bf16, whose sums also depend on the other rows of a batch.

    Attributes:
      heads: the normalizers: "full" (all ids), "legal" (the ids that can come next).
      class_names: names of the classes in `TokenSums`.
    """

    def __init__(
        self,
        decoder: TrainedDecoder,
        codebooks: int,
        heads: Sequence[str] = ("full",),
        batch_tokens: int = 0,
        greedy: bool = False,
    ):
        """Prepares the programs.

        Args:
          decoder: the checkpoint.
          codebooks: number of codebooks in the sequences.
          heads: the normalizers, of `HEADS`.
          batch_tokens: tokens of a batch, padding included; 0 = the default of the platform.
          greedy: whether to compute `TokenSums.greedy`, which computes the logits of the scored tokens again.
        """
        self._decoder = in_float32(decoder)
        placement = decoder.placement
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(placement.platform, _MORE_TOKENS)
        self._ways = placement.ways("batch", 2**30)
        # The attention kernels of accelerators need a multiple of 128 tokens on each device.
        self._unit = 128 * placement.ways("sequence", 2**30) if placement.platform != "cpu" else 1
        self.heads, self.class_names = tuple(heads), tuple(decoder.layout.class_names)
        self._partition = partition(decoder.layout, codebooks)
        vocabulary = VocabularyBlocks.of(decoder.layout)
        sets, periods = joint_sets(decoder.layout, [codebooks])
        self._sets = legal_sets(vocabulary, sets, periods)
        self._greedy = greedy
        # The rows of the head that each normalizer contains: one set for "full", the legal sets for "legal".
        self._normalizers = {"full": vocabulary.valid_rows[None]}
        if greedy and "legal" in heads:
            self._normalizers["legal"] = np.zeros((len(sets), vocabulary.rows), bool)
            for number, ranges in enumerate(sets):
                for start, stop in ranges:
                    self._normalizers["legal"][number, vocabulary.row_of_id[start:stop]] = True
        mesh = getattr(decoder.placement, "mesh", None)
        self._sums = jax.jit(self._summed, out_shardings=rules.replicated(mesh) if mesh else None)

    def __call__(
        self, sequences: Sequence[ScoredSequence]
    ) -> Iterator[tuple[list[int], Mapping[str, list[TokenSums]]]]:
        """Yields, for each batch, the indices of its sequences and their sums by head."""
        waiting = sorted(range(len(sequences)), key=lambda n: len(sequences[n].ids), reverse=True)
        while waiting:
            length = _bucket(len(sequences[waiting[0]].ids), self._unit)
            rows = max(1, self._batch_tokens // length // self._ways) * self._ways
            while rows % (2 * self._ways) == 0 and rows // 2 >= len(waiting):  # the last batch
                rows //= 2
            chosen, waiting = waiting[:rows], waiting[rows:]
            batch = self._batch([sequences[n] for n in chosen], rows, length)
            found = jax.device_get(self._sums(self._decoder.params, batch))
            yield (
                chosen,
                {
                    head: [
                        TokenSums(
                            sums["nll"][row].astype(float),
                            sums["count"][row].astype(float),
                            bool(sums["greedy"][row]) if self._greedy else None,
                        )
                        for row in range(len(chosen))
                    ]
                    for head, sums in found.items()
                },
            )

    def _batch(
        self, sequences: Sequence[ScoredSequence], rows: int, length: int
    ) -> dict[str, np.ndarray]:
        layout, rules_ = self._decoder.layout, self._partition
        batch = empty_batch(rows, length, legal_sets=True)
        assert batch.legal_set is not None
        for row, sequence in enumerate(sequences):
            ids, count = sequence.ids, len(sequence.ids)
            batch.tokens[row, :count] = ids
            batch.target_class[row, : count - 1] = layout.class_of_id[ids[1:]]
            batch.loss_mask[row, sequence.first - 1 : sequence.last - 1] = 1
            seen = np.concatenate([np.asarray(sequence.before, np.int32), ids[:-1]])
            states = rules_.states(seen, rules_.rules.start)[len(sequence.before) :]
            sets = rules_.joint_numbers[rules_.set_of_state[states]]
            batch.legal_set[row, : count - 1] = np.where(
                batch.loss_mask[row, : count - 1] > 0, sets, NO_SET
            )
        arrays = batch._replace(source=np.arange(rows, dtype=np.int32)).arrays()
        if self._greedy:
            # Positions before the scored tokens, −1 = none. Few widths, because each needs a program.
            most = max(sequence.last - sequence.first for sequence in sequences)
            width = next(n for n in (length // 8, length // 4, length // 2, length) if n >= most)
            arrays["scored"] = np.full((rows, width), -1, np.int32)
            for row, sequence in enumerate(sequences):
                found = np.arange(sequence.first - 1, sequence.last - 1)
                arrays["scored"][row, : len(found)] = found
        return arrays

    def _summed(self, params: Any, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        decoder, found = self._decoder.model.bind(params), {}
        kept: list[jax.Array] = []

        def keep(decoder: Decoder, hidden: jax.Array, batch: Any) -> jax.Array:
            # A loss term receives the hidden states, so the decoder need not run again for `greedy`.
            kept.append(hidden)
            return jnp.float32(0)

        for head in self.heads:
            _, sums = token_losses(
                decoder,
                batch,
                classes=len(self.class_names),
                sources=len(batch["source"]),
                placement=self._decoder.placement,
                legal=self._sets if head == "legal" else None,
                terms=(keep,) if self._greedy else (),
            )
            found[head] = {name: sums[name] for name in ("nll", "count")}
            if self._greedy:
                found[head]["greedy"] = self._all_most_likely(head, decoder, kept[-1], batch)
        return found

    def _all_most_likely(
        self, head: str, decoder: Decoder, hidden: jax.Array, batch: dict[str, jax.Array]
    ) -> jax.Array:
        """Returns whether all scored tokens of each row are the most likely ones, bool `[rows]`."""
        at = jnp.maximum(batch["scored"], 0)
        scored = jnp.take_along_axis(hidden, at[..., None], axis=1)
        targets = jnp.asarray(decoder.config.vocabulary.row_of_id)[
            jnp.take_along_axis(batch["tokens"], at + 1, axis=1)
        ]
        sets = jnp.zeros_like(at)
        if head == "legal":
            sets = jnp.take_along_axis(batch["legal_set"].astype(jnp.int32), at, axis=1)
        normalizers = jnp.asarray(self._normalizers[head])
        blocks = [
            block.reshape(-1, block.shape[-1]).astype(hidden.dtype)
            for block in decoder.head_blocks()
        ]

        def best(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            vector, number = inputs
            products = [
                jnp.einsum("d,vd->v", vector, block, preferred_element_type=jnp.float32)
                for block in blocks
            ]
            return jnp.argmax(jnp.where(normalizers[number], jnp.concatenate(products), -jnp.inf))

        flat = (scored.reshape(-1, scored.shape[-1]), sets.reshape(-1))
        rows = jax.lax.map(best, flat, batch_size=_GREEDY_POSITIONS)
        return ((rows.reshape(at.shape) == targets) | (batch["scored"] < 0)).all(axis=1)


def _bucket(length: int, unit: int) -> int:
    """Returns the length of the rows of a batch: 64, 80, 96, 112, 128, 160, 192, …, a multiple of `unit`."""
    size = max(_SHORTEST, 1 << max(0, length - 1).bit_length())
    step = max(_SHORTEST // 4, size // 8)
    rounded = max(_SHORTEST, -(-length // step) * step)
    return -(-rounded // unit) * unit
