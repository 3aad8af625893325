"""Continues the prompts of held-out items, and keeps every continuation for a stopped evaluation.

The random numbers of an item depend on the seed and the number of the item, not on the other items of its batch. The
shapes of a batch change log-probabilities in the last digits.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.evaluate.partial import PartialResults
from soda_jax.generate.engine import Job
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import Prompt, TaskContext, TaskOptions
from soda_jax.progress import track


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A prompt of an item.

    Attributes:
      name: unique name of the item.
      number: determines, with the seed, the random numbers; the position of the item among all items.
      ids: int32 `[tokens]`, BOS first.
    """

    name: str
    number: int
    ids: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Continued:
    """What the model generated after a prompt.

    Attributes:
      ids: the new tokens with the stop token, int32 `[tokens]`; empty for a failed one.
      finished, legal: see `Generated`; both False for a failed one.
      failed: why nothing could be generated, "" if it could.
      limited: set if the context of the model ended it before the given limit, and the model did not.
    """

    ids: np.ndarray
    finished: bool = False
    legal: bool = False
    failed: str = ""
    limited: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Codes `[frames, codebooks]` whose sound is scored; the name has a hash of them."""

    name: str
    codes: np.ndarray

    @classmethod
    def of(cls, name: str, codes: np.ndarray) -> "Clip":
        """Returns the clip of an item."""
        content = f"{codes.shape} {codes.dtype} ".encode() + codes.tobytes()
        return cls(f"{name} {_hash(content)}", codes)

    def sound(self, model: SpeechModel) -> np.ndarray:
        """Returns the decoded audio, f32 mono `[samples]`."""
        # Codecs need not support zero frames.
        return model.codec.decode([self.codes])[0] if len(self.codes) else np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    name: str
    job: Job


class HeldOutGenerator:
    """Continues prompts up to a number of seconds or tokens, and at most to the end of the context of the model.

    Attributes:
      model: the model.
      max_seconds: maximum length of generated speech in seconds.
      seed: seed of the sampling.
    """

    def __init__(
        self,
        model: SpeechModel,
        results: PartialResults | None = None,
        *,
        max_seconds: float = 15.0,
        seed: int = 0,
    ):
        """Stores the arguments.

        Args:
          model: the model.
          results: the continuations so far, opened with settings that contain the model and the seed; by default
            they are kept in memory. The prompt and its limits are part of the name of a result.
          max_seconds, seed: see the attributes.
        """
        self.model, self.max_seconds, self.seed = model, max_seconds, seed
        self._results = results or PartialResults(None, "generated", {})
        self._limits = TaskContext(model, TaskOptions(max_seconds=max_seconds))

    def __call__(
        self,
        asked: Sequence[Asked],
        kind: str,
        sampling: Sampling,
        progress: str,
        constrained: bool = True,
    ) -> list[Continued]:
        """Continues each prompt that has no result yet.

        Args:
          asked: the prompts.
          kind: "speech" (up to `audio_end`) or "text" (up to `text_end`).
          sampling: sampling settings.
          progress: label of the progress.
          constrained: False samples from all ids, without the grammar.
        """
        waiting: dict[str, _Waiting] = {}
        failed: dict[str, Continued] = {}
        for one in asked:
            try:
                job = self._limits.job(Prompt(one.ids, kind), one.number, sampling)
            except UserError as error:
                failed[one.name] = Continued(np.zeros(0, np.int32), failed=str(error))
            else:
                content = repr((np.asarray(one.ids).tolist(), *job[1:], constrained))
                waiting[one.name] = _Waiting(f"{one.name} {_hash(content.encode())}", job)

        def generate(block: Sequence[_Waiting]) -> Iterator[tuple[_Waiting, Mapping[str, Any]]]:
            jobs = [entry.job for entry in block]
            events = self.model.engine.stream(jobs, seed=self.seed, constrained=constrained)
            ended = ((event.job, event.result) for event in events if event.result is not None)
            for index, found in track(ended, progress, len(jobs)):
                yield (
                    block[index],
                    {"ids": found.ids.tolist(), "finished": found.finished, "legal": found.legal},
                )

        rows = self._results.fill(list(waiting.values()), generate)
        found = {
            name: self._continued(entry.job, kind, row)
            for (name, entry), row in zip(waiting.items(), rows, strict=True)
        }
        return [(found | failed)[one.name] for one in asked]

    def _continued(self, job: Job, kind: str, row: Mapping[str, Any]) -> Continued:
        ids = np.array(row["ids"], np.int32)
        options, codec = self._limits.options, self.model.codec
        wanted = options.max_tokens
        if kind == "speech":
            wanted = max(1, int(options.max_seconds * codec.frame_rate)) * self.model.codebooks + 1
        cut = len(ids) >= job.budget < wanted and not row["finished"]
        reason = f"it does not end within the context of {self._limits.context:,} tokens"
        return Continued(ids, row["finished"], row["legal"], limited=reason if cut else "")

    def codes(self, continued: Continued) -> np.ndarray:
        """Returns the codes of generated speech, uint16 `[frames, codebooks]`."""
        layout = self.model.layout
        ids = continued.ids[continued.ids != layout.audio_end]
        return layout.ids_to_codes(ids, self.model.codebooks)


def reasons(
    asked: Sequence[Asked], continued: Sequence[Continued], attribute: str
) -> list[dict[str, str]]:
    """Returns name and reason of the items that have `attribute`, "failed" or "limited", of `Continued`."""
    found = ((one.name, getattr(c, attribute)) for one, c in zip(asked, continued, strict=True))
    return [{"name": name, "reason": reason} for name, reason in found if reason]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
