"""Mimi over many clips: in pieces of fixed sizes, in batches, on all devices of this process.

Clips run through one compiled program for each size of piece, so nothing is compiled anew for a new
length, and a clip's codes do not depend on the clips beside it: the program, and with it every
rounding, is the same.
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
    """How much is worked on at once.

    Attributes:
      clips: clips of a batch, on each device.
      frames: sizes of the pieces that a clip is cut into; one program is compiled for each. Where a batch
        has more than one clip, only the smallest is used.
      inner: the convolutions go through a piece by so many frames at a time, a divisor of each size.
    """

    clips: int
    frames: tuple[int, ...]
    inner: int

    def __post_init__(self) -> None:
        if min(self.clips, self.inner, *self.frames) < 1 or any(
            n % self.inner for n in self.frames
        ):
            raise ValueError(f"{self}: all must be positive, and inner divide each of frames")

    def cut(self, frames: int) -> list[int]:
        """Sizes of the pieces that cover `frames`: the largest that fit, then the smallest."""
        sizes, left = [], frames
        for size in sorted(self.frames, reverse=True):
            sizes += [size] * (left // size)
            left %= size
        return sizes + [min(self.frames)] * (left > 0)


# A CPU gains nothing from a batch, and much from activations that stay in its cache.
_CPU = Batching(clips=1, frames=(125, 25), inner=5)
# Two seconds of 64 clips are enough for an accelerator, and a clip is filled up by less than that.
_ACCELERATOR = Batching(clips=64, frames=(25,), inner=25)


# Where the clips of a batch stand in each part of the state.
_STATE = State(P("clips"), P(None, "clips"), P("clips"), P())  # type: ignore[arg-type]


class Runner:
    """A model on the devices of this process.

    Attributes:
      batching: how much is worked on at once.
      dtype: of the activations.
      clips: of a batch, on all devices together.
    """

    def __init__(
        self,
        model: Mimi,
        dtype: str,
        batching: Batching | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Args:
        model: the network with its weights.
        dtype: of the activations; the quantizer always works in f32.
        batching: how much is worked on at once; None chooses by the kind of device.
        devices: where; None is all of this process.
        """
        devices = devices or jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        batching = batching or (_CPU if on_cpu else _ACCELERATOR)
        if batching.clips * len(devices) > 1:
            # With one size, a clip's pieces do not depend on the longest clip beside it.
            batching = dataclasses.replace(batching, frames=(min(batching.frames),))
        self.batching = batching
        self.dtype = jnp.dtype(dtype)
        self._mesh = Mesh(np.array(devices), ("clips",))
        self._by_clip = NamedSharding(self._mesh, P("clips"))
        # Said of the first state and of every later one: each other layout would be compiled for anew.
        self._state_layout = jax.tree.map(partial(NamedSharding, self._mesh), _STATE)
        self.clips = self.batching.clips * len(devices)
        self._graph, params = nnx.split(model)
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))

    def encode(self, audio: Sequence[np.ndarray], hop: int) -> list[np.ndarray]:
        """int32 `[frames, codebooks]` of each float32 clip `[samples]`; `hop` samples a frame."""
        counts = [-(-len(clip) // hop) for clip in audio]
        return self._run(audio, counts, (hop,), self._encode, self._start_encoding)

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 `[frames, hop]` of each int32 `[frames, n]`, n the same for all."""
        counts = [len(clip) for clip in codes]
        books = codes[0].shape[1] if codes else 0
        flat = [clip.reshape(-1) for clip in codes]
        return self._run(flat, counts, (books,), self._decode, self._start_decoding)

    @cached_property
    def _start_encoding(self) -> Callable:
        return self._starting(Mimi.start_encoding)

    @cached_property
    def _start_decoding(self) -> Callable:
        return self._starting(Mimi.start_decoding)

    def _starting(self, start: Callable) -> Callable:
        model = nnx.merge(self._graph, self._params)  # of which only the shapes are looked at
        return jax.jit(
            partial(start, model, self.clips, self.dtype), out_shardings=self._state_layout
        )

    @cached_property
    def _encode(self) -> Callable:
        """(parameters, sound of a piece `[batch, frames, hop]`, state) to (codes, state), jitted."""

        def work(params: nnx.State, audio: jax.Array, state: State) -> tuple[jax.Array, State]:
            model = nnx.merge(self._graph, params)
            flat = audio.reshape(len(audio), -1).astype(self.dtype)
            return model.encode(flat, state, audio.shape[1] // self.batching.inner)

        return self._on_devices(work)

    @cached_property
    def _decode(self) -> Callable:
        """(parameters, codes of a piece `[batch, frames, n]`, state) to (sound, state), jitted."""

        def work(params: nnx.State, codes: jax.Array, state: State) -> tuple[jax.Array, State]:
            model, pieces = nnx.merge(self._graph, params), codes.shape[1] // self.batching.inner
            sound, state = model.decode(codes, state, pieces, self.dtype)
            return sound.reshape(*codes.shape[:2], -1), state

        return self._on_devices(work)

    @cached_property
    def encode_one(self) -> Callable:
        """(sound `[1, samples]`, state) to (codes, state), jitted, for one clip on one device."""

        def work(params: nnx.State, audio: jax.Array, state: State) -> tuple[jax.Array, State]:
            return nnx.merge(self._graph, params).encode(audio.astype(self.dtype), state, 1)

        return self._on_one_device(work)

    @cached_property
    def decode_one(self) -> Callable:
        """(codes `[1, frames, n]`, state) to (sound, state), jitted, for one clip on one device."""

        def work(params: nnx.State, codes: jax.Array, state: State) -> tuple[jax.Array, State]:
            return nnx.merge(self._graph, params).decode(codes, state, 1, self.dtype)

        return self._on_one_device(work)

    def _on_one_device(self, work: Callable) -> Callable:
        params = jax.device_put(self._params, self._mesh.devices.flat[0])
        return partial(jax.jit(work, donate_argnums=2), params)

    def _on_devices(self, work: Callable) -> Callable:
        """`work` on each device for its own clips; what it does there is the same for any number."""
        mapped = jax.shard_map(
            work,
            mesh=self._mesh,
            in_specs=(P(), P("clips"), _STATE),
            out_specs=(P("clips"), _STATE),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=2, out_shardings=(self._by_clip, self._state_layout))

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
          clips: flat, `[up to count · prod(frame)]`.
          counts: frames of each, at least one.
          frame: shape of one frame of the input.
          work: the program of a piece.
          start: makes the state of a batch.

        Returns:
          `[count, …]` for each clip.
        """
        width = int(np.prod(frame))
        order = sorted(range(len(clips)), key=lambda place: counts[place])
        found: dict[int, np.ndarray] = {}
        for first in range(0, len(order), self.clips):
            group = order[first : first + self.clips]
            sizes = self.batching.cut(max(counts[place] for place in group))
            padded = np.zeros((self.clips, sum(sizes) * width), clips[group[0]].dtype)
            for row, place in enumerate(group):
                padded[row, : len(clips[place])] = clips[place]
            whole = padded.reshape(self.clips, -1, *frame)
            results, state = [], start()
            for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
                # Sent piece by piece, and not waited for: the next is sent while this one is at work.
                sent = jax.device_put(
                    np.ascontiguousarray(whole[:, end - size : end]), self._by_clip
                )
                result, state = work(self._params, sent, state)
                results.append(result)
            joined = np.concatenate([np.asarray(result) for result in results], axis=1)
            for row, place in enumerate(group):
                found[place] = joined[row, : counts[place]]
        return [found[place] for place in range(len(clips))]
