"""Keeps the latest recordings and generated clips of a server in memory."""

import dataclasses
import secrets
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from soda_jax.errors import UserError


class UnknownClipError(UserError):
    """Raised for a clip that does not exist or was removed for newer ones."""


@dataclasses.dataclass(eq=False)
class Clip:
    """A recording or a generated clip.

    Attributes:
      kind: "upload" or the task that generated it.
      audio: f32 mono `[samples]`; None while it is generated.
      sample_rate: in Hz.
      codes: uint16 `[frames, codebooks]`; None if they are not known yet.
      text: the text that was spoken; empty for other clips.
      finished: whether the model ended it; True for an upload.
      parts: its parts as dicts, see `generate.tasks.Part`.
      transcript: text, finished and parts of its transcript; None if there is none yet.
      error: why its generation ended early; empty if it did not.
      id: an identifier that cannot be guessed.
    """

    kind: str
    sample_rate: int
    audio: np.ndarray | None = None
    codes: np.ndarray | None = None
    text: str = ""
    finished: bool = True
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    transcript: dict[str, Any] | None = None
    error: str = ""
    id: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(9))

    def summary(self) -> dict[str, Any]:
        """Returns what the API shows of a clip, JSON-able."""
        samples = 0 if self.audio is None else len(self.audio)
        return {
            "clip": self.id,
            "kind": self.kind,
            "complete": self.audio is not None,
            "audio": f"api/clips/{self.id}.wav",
            "seconds": samples / self.sample_rate,
            "text": self.text,
            "finished": self.finished,
            "parts": self.parts,
            "transcript": self.transcript,
            "error": self.error,
        }


class Clips:
    """The newest clips; the oldest are removed beyond a number and a total length."""

    def __init__(self, most: int = 64, most_seconds: float = 1800.0):
        """Sets the limits."""
        self._most, self._most_seconds = most, most_seconds
        self._clips: OrderedDict[str, Clip] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, clip: Clip) -> Clip:
        """Adds a clip, or one that has become longer, and removes the oldest ones if there are too many."""
        with self._lock:
            self._clips[clip.id] = clip
            self._clips.move_to_end(clip.id)
            while len(self._clips) > 1 and (
                len(self._clips) > self._most or self._seconds() > self._most_seconds
            ):
                self._clips.popitem(last=False)
        return clip

    def __getitem__(self, identifier: str) -> Clip:
        with self._lock:
            if identifier not in self._clips:
                raise UnknownClipError(f"there is no clip {identifier[:40]!r}: upload it again")
            self._clips.move_to_end(identifier)
            return self._clips[identifier]

    def remove(self, clip: Clip) -> None:
        """Removes a clip, if it is still there."""
        with self._lock:
            self._clips.pop(clip.id, None)

    def _seconds(self) -> float:
        return sum(
            len(clip.audio) / clip.sample_rate
            for clip in self._clips.values()
            if clip.audio is not None
        )
