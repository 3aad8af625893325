"""Runs Mimi on batches of clips, in pieces of fixed sizes, on all devices of this process.

Encoding has one compiled program per piece size, and decoding one per piece size and number of
codebooks. A new clip length therefore needs no compilation. The codes of a clip do not depend on
the other clips of its batch, because the same programs, with the same rounding, process every
batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soda_jax.codecs.mimi.model import Mimi, State


@dataclasses.dataclass(frozen=True)
class Batching:
    """Sizes of batches and pieces.

    Attributes:
      clips: clips per device in a batch.
      frames: piece sizes in frames; a program is compiled for each. If a batch has more than one
        clip, only the smallest size is used.
      inner: number of frames that the convolutions process at a time; must divide all of `frames`.
    """

    clips: int
    frames: tuple[int, ...]
    inner: int

    def __post_init__(self) -> None:
        if min(self.clips, self.inner, *self.frames) < 1 or any(
            n % self.inner for n in self.frames
        ):
            raise ValueError(f"{self}: all must be positive, and inner must divide each of frames")

    def cut(self, frames: int) -> list[int]:
        """Returns sizes of pieces that cover `frames` frames, in descending order.

        The last piece may extend past `frames`; its input is padded.
        """
        sizes, left = [], frames
        for size in sorted(self.frames, reverse=True):
            sizes += [size] * (left // size)
            left %= size
        return sizes + [min(self.frames)] * (left > 0)


# On a CPU, batching does not help, and it is much faster if the activations fit into the cache.
_CPU = Batching(clips=1, frames=(125, 25), inner=5)
# 64 clips of 2 s saturate an accelerator, and the longest clip is padded by less than 2 s.
_ACCELERATOR = Batching(clips=64, frames=(25,), inner=25)
# Partition spec of each part of the state, which is sharded by clips.
_STATE = State(P("clips"), P(None, "clips"), P("clips"), P())  # type: ignore[arg-type]


class Runner:
    """A model on the devices of this process.

    Attributes:
      batching: sizes of batches and pieces.
      dtype: dtype of the activations.
      clips: clips per batch, summed over all devices.
    """

    def __init__(
        self,
        model: Mimi,
        dtype: str,
        batching: Batching | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Copies the parameters to the devices; see `MimiCodec` for the arguments."""
        devices = devices or jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        batching = batching or (_CPU if on_cpu else _ACCELERATOR)
        if batching.clips * len(devices) > 1:
            # With a single size, the pieces do not depend on the longest clip of the batch.
            batching = dataclasses.replace(batching, frames=(min(batching.frames),))
        self.batching = batching
        self.dtype = jnp.dtype(dtype)
        self._mesh = Mesh(np.array(devices), ("clips",))
        self._by_clip = NamedSharding(self._mesh, P("clips"))
        # Used for the first and all later states, because another sharding causes a recompilation.
        self._state_layout = jax.tree.map(partial(NamedSharding, self._mesh), _STATE)
        self.clips = self.batching.clips * len(devices)
        self._graph, params = nnx.split(model)
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))

    def encode(self, audio: Sequence[np.ndarray], hop: int) -> list[np.ndarray]:
        """Encodes float32 clips `[samples]` to int32 `[ceil(samples / hop), codebooks]`.

        `hop` is the number of samples per frame.
        """
        counts = [-(-len(clip) // hop) for clip in audio]
        return self._run(audio, counts, (hop,), *self._encode)

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes int32 `[frames, n]`, the same n for all clips, to float32 `[frames, hop]`."""
        counts = [len(clip) for clip in codes]
        books = codes[0].shape[1] if codes else 0
        flat = [clip.reshape(-1) for clip in codes]
        return self._run(flat, counts, (books,), *self._decode)

    @cached_property
    def _encode(self) -> tuple[Callable, Callable]:
        return self._on_devices(self._encode_piece, Mimi.start_encoding)

    @cached_property
    def _decode(self) -> tuple[Callable, Callable]:
        return self._on_devices(self._decode_piece, Mimi.start_decoding)

    @cached_property
    def encode_one(self) -> Callable:
        """Jitted (audio `[1, frames, hop]`, state) -> (codes, state), on one device."""
        return self._on_one_device(self._encode_piece)

    @cached_property
    def decode_one(self) -> Callable:
        """Jitted (codes `[1, frames, n]`, state) -> (audio `[1, frames, hop]`, state)."""
        return self._on_one_device(self._decode_piece)

    def _encode_piece(
        self, params: nnx.State, audio: jax.Array, state: State, inner: int | None = None
    ) -> tuple[jax.Array, State]:
        """Encodes `[batch, frames, hop]`; see `Batching` for `inner` (None = all frames)."""
        flat = audio.reshape(len(audio), -1).astype(self.dtype)
        pieces = audio.shape[1] // inner if inner else 1
        return nnx.merge(self._graph, params).encode(flat, state, pieces)

    def _decode_piece(
        self, params: nnx.State, codes: jax.Array, state: State, inner: int | None = None
    ) -> tuple[jax.Array, State]:
        """Decodes `[batch, frames, n]` to `[batch, frames, hop]`; see `_encode_piece`."""
        pieces = codes.shape[1] // inner if inner else 1
        audio, state = nnx.merge(self._graph, params).decode(codes, state, pieces, self.dtype)
        return audio.reshape(*codes.shape[:2], -1), state

    def _on_one_device(self, work: Callable) -> Callable:
        params = jax.device_put(self._params, self._mesh.devices.flat[0])
        return partial(jax.jit(work, donate_argnums=2), params)

    def _on_devices(self, work: Callable, start: Callable) -> tuple[Callable, Callable]:
        """Returns jitted `work` and `start`, with the clips sharded over the devices."""
        mapped = jax.shard_map(
            partial(work, inner=self.batching.inner),
            mesh=self._mesh,
            in_specs=(P(), P("clips"), _STATE),
            out_specs=(P("clips"), _STATE),
            check_vma=False,
        )
        layouts = (self._by_clip, self._state_layout)
        model = nnx.merge(self._graph, self._params)  # only its shapes are used
        first = jax.jit(partial(start, model, self.clips, self.dtype), out_shardings=layouts[1])
        return jax.jit(mapped, donate_argnums=2, out_shardings=layouts), first

    def _run(
        self,
        clips: Sequence[np.ndarray],
        counts: Sequence[int],
        frame: tuple[int, ...],
        work: Callable,
        start: Callable[[], State],
    ) -> list[np.ndarray]:
        """Runs `work` over clips in batches of similar length.

        Args:
          clips: flattened clips, each with at most count · prod(frame) values.
          counts: number of frames of each clip, at least one.
          frame: shape of a frame of the input.
          work: jitted function that processes a piece.
          start: returns the initial state of a batch.

        Returns:
          `[count, …]` for each clip.
        """
        width = int(np.prod(frame))
        order = sorted(range(len(clips)), key=lambda number: counts[number])
        found: dict[int, np.ndarray] = {}
        for first in range(0, len(order), self.clips):
            group = order[first : first + self.clips]
            sizes = self.batching.cut(max(counts[number] for number in group))
            padded = np.zeros((self.clips, sum(sizes) * width), clips[group[0]].dtype)
            for row, number in enumerate(group):
                padded[row, : len(clips[number])] = clips[number]
            whole = padded.reshape(self.clips, -1, *frame)
            results, state = [], start()
            for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
                # Asynchronous, so the next piece is copied while this one is processed.
                sent = jax.device_put(
                    np.ascontiguousarray(whole[:, end - size : end]), self._by_clip
                )
                result, state = work(self._params, sent, state)
                results.append(result)
            joined = np.concatenate([np.asarray(result) for result in results], axis=1)
            for row, number in enumerate(group):
                found[number] = joined[row, : counts[number]]
        return [found[number] for number in range(len(clips))]
