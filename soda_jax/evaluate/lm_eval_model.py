"""A checkpoint as a model of lm-evaluation-harness, which its registry calls `soda`.

A text is scored and continued as `BOS text`, the form of text-only documents and of our HellaSwag. A prompt
and its continuation are tokenized together and split as the models of lm-evaluation-harness do it; the scores
are those of `ModelLikelihood`.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import lm_eval.models  # noqa: F401  # without it, a registered model hides those of lm-evaluation-harness
import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions
from soda_jax.evaluate.likelihood import ModelLikelihood, ScoredSequence
from soda_jax.generate.engine import LARGEST_SEED, Engine
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.progress import progress
from soda_jax.tokens.documents import most_codebooks

_MAX_NEW_TOKENS = 256
# Generation pauses after this number of new tokens to search the texts for stop strings, then after twice the
# number, and so on, because the prefill is repeated after each pause.
_FIRST_PIECE = 32
# Settings of a task that `generate_until` uses.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}

_log = logging.getLogger(__name__)


@register_model("soda")
class SodaLM(LM):
    """A checkpoint with its text tokenizer, for text tasks.

    Attributes:
      max_length: largest number of tokens that the model reads, the length of its training windows.
      truncated: number of requests so far that were too long and lost tokens at their beginning.
      merged: number of continuations so far whose first characters share a token with the prompt.
    """

    def __init__(
        self,
        workdir: str = "",
        step: int | None = None,
        head: str = "full",
        dtype: str = "",
        data: int = 0,
        tensor: int = 0,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ):
        """Loads the checkpoint; the arguments are those of `--model_args`.

        Args:
          workdir: the run's folder.
          step: step of the checkpoint; the newest valid one by default.
          head: "full" or "legal", the ids over which log-probabilities are normalized: all, or those that the
            grammar permits.
          dtype: dtype to which the weights are rounded: "float32", "bfloat16" or "int8"; by default float32
            for scores and the default of the platform for generated text.
          data, tensor: devices along these mesh axes, all of them together; one device by default.
          seed: seed of the sampling.
          batch_size, max_batch_size, device, trust_remote_code: ignored; lm-evaluation-harness always passes some
            of them ("cuda:0" on every machine). The rows of a batch follow from their length, and
            `JAX_PLATFORMS` selects the devices.
          **unknown: refused.

        Raises:
          UserError: if an argument is unknown or wrong, there is no valid checkpoint, or the model was not
            trained with text.
        """
        super().__init__()
        if unknown:
            raise UserError(
                f"model_args has {', '.join(unknown)}, which is unknown: use workdir, step, head, dtype, data, "
                "tensor, seed"
            )
        if not workdir:
            raise UserError("model_args has no workdir: pass --model_args workdir=RUN")
        numbers = {"step": step, "data": data, "tensor": tensor, "seed": seed}
        for name, value in numbers.items():
            if value is not None and (type(value) is not int or value < 0):
                raise UserError(f"model_args {name}={value} must be an integer of at least 0")
        mesh = {name: size for name, size in (("data", data), ("tensor", tensor)) if size}
        # The task is not run; `loss` is one that needs no codec and no folder of a benchmark.
        options = EvaluationOptions(
            ("loss",), step=step, head=head, dtype=dtype, mesh=mesh or None, seed=seed
        )
        self._context = EvaluationContext(str(workdir), options)
        self._context.require("lm-evaluation-harness", "text")
        self._tokenizer, model = self._context.tokenizer, self._context.model
        trained = model.metadata.get("tokenizer_fingerprint")
        # A converted model may come from a format without this fingerprint.
        if trained and self._tokenizer.fingerprint != trained:
            raise UserError(
                f"{workdir}/tokenizer is not the tokenizer of the checkpoint: copy that of the training data"
            )
        self._layout = model.layout
        sources = model.metadata["data"].get("sources", {})
        self._codebooks = most_codebooks(sources.values(), model.layout)
        self.max_length: int = model.metadata["data"]["sequence_length"]
        self.truncated = self.merged = 0

    @cached_property
    def _likelihood(self) -> ModelLikelihood:
        context = self._context
        return ModelLikelihood(
            context.scored_model, self._codebooks, (context.options.head or "full",), greedy=True
        )

    @cached_property
    def _engine(self) -> Engine:
        model = self._context.model
        return Engine(
            model.model, model.params, model.layout, self._codebooks,
            dtype=self._context.options.dtype, placement=model.placement,
        )  # fmt: skip

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations.

        Args:
          requests: instances whose `args` are (prompt, continuation).
          disable_tqdm: ignored.

        Returns:
          for each request, the log-probability of the continuation in nats, and whether each of its tokens
          is the most likely one. White space at the end of the prompt belongs to the continuation.
          Without a continuation, (0, True).
        """
        pairs = [self._split(*_texts(request, 2)) for request in requests]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for number, answer in self._scores(pairs, "loglikelihood"):
            answers[number] = answer
            self.cache_hook.add_partial("loglikelihood", requests[number].args, answer)
        self._announce()
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-probability in nats of whole texts, each scored separately.

        Every token is scored once. A text that is longer than the context is read in windows, the first of
        which begins with BOS, each other one with the last token of the window before it. The last window begins
        earlier than that, so that its tokens have as much context as fits.

        Args:
          requests: instances whose `args` are (text,).
          disable_tqdm: ignored.
        """
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = _texts(request, 1)
            windows = get_rolling_token_windows(
                token_list=self._tokenizer.encode(text).tolist(),
                prefix_token=self._layout.bos,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs += map(make_disjoint_window, windows)
            owners += [number] * (len(pairs) - len(owners))
        parts: list[list[float]] = [[] for _ in requests]
        for number, (score, _) in self._scores(pairs, "loglikelihood_rolling"):
            parts[owners[number]].append(score)
        totals = [math.fsum(part) for part in parts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues texts with ordinary text, until EOS, a stop string or the maximum number of tokens.

        Args:
          requests: instances whose `args` are (prompt, settings). The settings are until, max_gen_toks (256)
            or one of its other names, do_sample, temperature, top_k, top_p.
          disable_tqdm: ignored.

        Returns:
          the continuations, without the stop string.
        """
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        with progress("generate_until", len(requests)) as bar:
            for key, numbers in groups.items():
                texts = [_texts(requests[number], 2)[0] for number in numbers]
                for number, answer in self._continued(texts, json.loads(key), numbers):
                    answers[number] = answer
                    self.cache_hook.add_partial("generate_until", requests[number].args, answer)
                    bar.advance()
        self._announce()
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm-evaluation-harness stores in the config of its results."""
        context = self._context
        return {
            "soda_step": context.model.step,
            "soda_checkpoint": context.model.digest,
            "soda_head": context.options.head,
            "soda_weights_dtype": context.weights_dtype,
            "soda_truncated_requests": self.truncated,
            "soda_merged_continuations": self.merged,
        }

    @property
    def tokenizer_name(self) -> str:
        """Raises UserError; the name is read only for a chat template."""
        raise UserError(_NO_CHAT)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns an empty string; raises UserError if a chat template is requested."""
        if chat_template:
            raise UserError(_NO_CHAT)
        return ""

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Raises UserError."""
        raise UserError(_NO_CHAT)

    def _split(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a prompt, from BOS, and those of its continuation."""
        kept = prompt.rstrip()
        continuation = prompt[len(kept) :] + continuation
        whole = self._tokenizer.encode(kept + continuation).tolist()
        first = len(self._tokenizer.encode(kept)) if kept else 0
        if continuation and whole and first >= len(whole):
            # The continuation and the end of the prompt are one token: score this token.
            self.merged += 1
            first = len(whole) - 1
        return [self._layout.bos, *whole[:first]], whole[first:]

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], label: str
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yields (index of the pair, (log-probability, greedy)) of all pairs with a continuation."""
        bos, most = self._layout.bos, self.max_length
        numbers = [number for number, (_, continuation) in enumerate(pairs) if continuation]
        sequences = []
        for number in numbers:
            prompt, continuation = pairs[number]
            if len(continuation) > most:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens is longer than the context of the model, "
                    f"{most} tokens: leave this task out"
                )
            # The last token is only a target, so the model reads one token less.
            ids = np.array([*prompt, *continuation][-(most + 1) :], np.int32)
            self.truncated += len(ids) < len(prompt) + len(continuation)
            before = () if ids[0] == bos else (bos, int(ids[0]))
            sequences.append(ScoredSequence(ids, len(ids) - len(continuation), len(ids), before))
        (head,) = self._likelihood.heads
        with progress(label, len(numbers)) as bar:
            for indices, sums in self._likelihood(sequences):
                for index, found in zip(indices, sums[head], strict=True):
                    score = -float(found.nll.sum())
                    if not math.isfinite(score):
                        raise UserError(
                            "a log-probability is not finite: the parameters of this checkpoint are damaged "
                            "or the training diverged"
                        )
                    yield numbers[index], (score, bool(found.greedy))
                bar.advance(len(indices))

    def _continued(
        self, prompts: Sequence[str], settings: dict[str, Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """Yields (number, continuation) of prompts with the same settings, in the order in which they end."""
        chosen = normalize_gen_kwargs(settings, _MAX_NEW_TOKENS)
        if ignored := sorted(chosen.keys() - _KNOWN):
            _log.warning("generation settings that are not supported: %s", ", ".join(ignored))
        sampling = GREEDY
        if chosen["do_sample"]:
            sampling = Sampling(
                chosen.get("temperature", 1.0), chosen.get("top_k", 0), chosen.get("top_p", 1.0)
            )
        stops = [stop for stop in chosen["until"] if stop]
        budget = chosen["max_gen_toks"]
        room = self.max_length - budget
        if budget < 1 or room < 1:
            raise UserError(
                f"max_gen_toks {budget} must be at least 1 and less than the context of the model, "
                f"{self.max_length} tokens: pass --gen_kwargs max_gen_toks=N"
            )
        ids: dict[int, list[int]] = {}
        for number, prompt in zip(numbers, prompts, strict=True):
            encoded = self._tokenizer.encode(prompt).tolist()
            # A document begins with BOS, so the tokens after it are removed.
            self.truncated += len(encoded) > room - 1
            ids[number] = [self._layout.bos, *encoded[max(0, len(encoded) - room + 1) :]]
        new: dict[int, list[int]] = {number: [] for number in numbers}
        waiting, spent, piece, turn = list(numbers), 0, _FIRST_PIECE, 0
        while waiting:
            count = min(piece, budget - spent)
            results = self._engine(
                [np.array(ids[number] + new[number], np.int32) for number in waiting],
                stop=self._layout.eos,
                budget=count,
                sampling=sampling,
                # Random numbers depend on the seed and the number of new tokens, which begins at 0 again.
                seed=(self._context.options.seed + turn) % (LARGEST_SEED + 1),
                prompt_numbers=waiting,
            )
            spent, piece, turn = spent + count, 2 * piece, turn + 1
            unfinished = []
            for number, result in zip(waiting, results, strict=True):
                ordinary = self._layout.ordinary_text[result.ids]
                # Text ends at EOS. After BOS alone, speech may begin as well.
                length = len(ordinary) if ordinary.all() else int(np.argmin(ordinary))
                new[number] += result.ids[:length].tolist()
                text = self._tokenizer.decode(new[number])
                ends = [text.index(stop) for stop in stops if stop in text]
                if ends or length < len(ordinary) or spent >= budget:
                    yield number, text[: min(ends, default=len(text))]
                else:
                    unfinished.append(number)
            waiting = unfinished

    def _announce(self) -> None:
        """Logs how many requests were changed so far."""
        if self.truncated:
            _log.warning(
                "%d requests are longer than the context of %d tokens; their beginning was removed",
                self.truncated,
                self.max_length,
            )
        if self.merged:
            _log.warning(
                "%d continuations share a token with their prompt; this token was scored",
                self.merged,
            )


_NO_CHAT = "this model has no chat template: it continues texts; run without --apply_chat_template"


def _texts(request: Any, count: int) -> Any:
    """Returns the arguments of a request; raises UserError if they contain more than text."""
    if len(request.args) != count:
        raise UserError(
            f"a {request.request_type} request has {len(request.args)} arguments: tasks with images or sounds "
            "are not supported"
        )
    return request.args
