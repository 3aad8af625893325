"""Scores multiple-choice benchmarks: the choice with the highest mean log-probability is the answer.

A benchmark gives the names of its items first and their tokens block by block, because its audio must be
encoded. Every result is written to a file at once, so a stopped evaluation continues with the next item.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.evaluate.likelihood import Likelihood, ScoredSequence, TokenSums
from soda_jax.evaluate.partial import PartialResults

# Scores of two choices that differ by less, relative to their size, are equal: sums of f32 log-probabilities
# depend on the batch in the last digits.
TIE = 1e-5
_BLOCK = 64
_RESAMPLES = 1000
# Names of the sums that are compared: those of all scored tokens, or of the semantic tokens only.
ALL, SEMANTIC = "all", "semantic"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One item of a benchmark, before its tokens exist.

    Attributes:
      name: unique name, for reports and for resuming.
      group: items of a group, such as the voices that speak one pair, count as one together.
      part: the part of the benchmark, such as a task of SALMon.
      content: what the benchmark needs to build the item.
    """

    name: str
    group: str
    part: str
    content: Any


@dataclasses.dataclass(frozen=True)
class Choice:
    """An answer and the number by which its log-probability is divided; 0 = its scored tokens."""

    sequence: ScoredSequence
    divisor: float = 0.0


@dataclasses.dataclass(frozen=True)
class Item:
    """The choices of an entry; `correct` is the index of the right one."""

    choices: tuple[Choice, ...]
    correct: int = 0


Build = Callable[[Sequence[Entry]], list[Item | str]]


def score_choices(
    entries: Sequence[Entry],
    build: Build,
    likelihood: Likelihood,
    results: PartialResults,
    *,
    kinds: Sequence[str] = (ALL,),
    context: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores the items that `results` does not contain, and returns the accuracies of all.

    Args:
      entries: the items of the benchmark.
      build: returns the item of each entry of a block, or the reason why it cannot be scored.
      likelihood: scores token sequences.
      results: results of the items so far.
      kinds: `ALL`, `SEMANTIC`.
      context: largest number of tokens of a sequence; 0 = no limit.
      seed: seed of the confidence intervals.

    Returns:
      the result of `summarize`.

    Raises:
      UserError: if no item can be scored.
    """
    for block in results.pending(entries, _BLOCK, "items"):
        _score_block(block, build(block), likelihood, results, kinds, context)
    rows = [{"name": entry.name, **results[entry.name]} for entry in entries]
    groups = {entry.name: (entry.part, entry.group) for entry in entries}
    return summarize(rows, groups, likelihood.heads, kinds, seed)


def _score_block(
    block: Sequence[Entry],
    items: Sequence[Item | str],
    likelihood: Likelihood,
    results: PartialResults,
    kinds: Sequence[str],
    context: int,
) -> None:
    usable: list[tuple[Entry, Item]] = []
    for entry, item in zip(block, items, strict=True):
        reason = item if isinstance(item, str) else _too_long(item, context)
        if reason:
            # Not kept: the cause may be removed before the evaluation is continued.
            results.add(entry.name, {"failed": reason}, keep=False)
        else:
            usable.append((entry, item))  # type: ignore[arg-type]
    owners = [(n, c) for n, (_, item) in enumerate(usable) for c in range(len(item.choices))]
    sequences = [usable[n][1].choices[c].sequence for n, c in owners]
    sums: list[dict[int, Mapping[str, TokenSums]]] = [{} for _ in usable]
    for indices, by_head in likelihood(sequences):
        for at, index in enumerate(indices):
            number, choice = owners[index]
            sums[number][choice] = {head: found[at] for head, found in by_head.items()}
            entry, item = usable[number]
            if len(sums[number]) == len(item.choices):
                row = _row(item, sums[number], likelihood, kinds)
                values = [
                    v for kind in row["scores"].values() for one in kind.values() for v in one
                ]
                if not np.isfinite(values).all():
                    raise UserError(
                        f"{results.task}: the log-probabilities of {entry.name} are not finite: the "
                        "parameters of this checkpoint are damaged or the training diverged"
                    )
                results.add(entry.name, row)


def _too_long(item: Item, context: int) -> str:
    longest = max(len(choice.sequence.ids) for choice in item.choices)
    if context and longest > context:
        return f"{longest} tokens are more than the context of {context} tokens"
    return ""


def _row(
    item: Item,
    sums: Mapping[int, Mapping[str, TokenSums]],
    likelihood: Likelihood,
    kinds: Sequence[str],
) -> dict[str, Any]:
    semantic = np.array([name == "semantic" for name in likelihood.class_names])
    scores: dict[str, dict[str, list[float]]] = {}
    for head, kind in itertools.product(likelihood.heads, kinds):
        values = []
        for number, choice in enumerate(item.choices):
            nll, tokens, _ = sums[number][head]
            chosen = semantic if kind == SEMANTIC else np.ones(len(nll), bool)
            values.append(float(-nll[chosen].sum() / (choice.divisor or tokens[chosen].sum())))
        scores.setdefault(head, {})[kind] = values
    return {"correct": item.correct, "scores": scores}


def credit(scores: Sequence[float], correct: int) -> float:
    """Returns 1 if the correct choice has the highest score, 1/n if it is one of n equal ones, else 0."""
    best = max(scores)
    equal = [best - score <= TIE * abs(best) for score in scores]
    return equal[correct] / sum(equal)


def summarize(
    rows: Iterable[Mapping[str, Any]],
    groups: Mapping[str, tuple[str, str]],
    heads: Sequence[str],
    kinds: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the accuracies of a benchmark.

    Args:
      rows: dicts with name, and correct and scores, or failed (the reason).
      groups: (part, group) of each name.
      heads, kinds: the accuracies to compute.
      seed: seed of the bootstrap.

    Returns:
      a JSON-able dict with items, scored, failed (name and reason of the others), tie, and accuracy: a dict
      from head and kind to a dict with all and the parts. Each is a dict with accuracy, low and
      high (its 95% bootstrap interval over groups) and items. A group counts once, with the mean of its
      items.

    Raises:
      UserError: if no item was scored.
    """
    rows = list(rows)
    failed = [{"name": row["name"], "reason": row["failed"]} for row in rows if "failed" in row]
    scored = [row for row in rows if "failed" not in row]
    if not scored:
        first = f", the first because {failed[0]['reason']}" if failed else ""
        raise UserError(f"none of {len(rows)} items can be scored{first}")
    accuracy: dict[str, dict[str, dict[str, Any]]] = {}
    for head, kind in itertools.product(heads, kinds):
        by_part: dict[str, dict[tuple[str, str], list[float]]] = {"all": {}}
        for row in scored:
            part, group = groups[row["name"]]
            value = credit(row["scores"][head][kind], row["correct"])
            for name in ("all", part) if part else ("all",):
                by_part.setdefault(name, {}).setdefault((part, group), []).append(value)
        accuracy.setdefault(head, {})[kind] = {
            name: interval(list(found.values()), seed) for name, found in by_part.items()
        }
    return {
        "items": len(rows),
        "scored": len(scored),
        "failed": failed,
        "tie": TIE,
        "accuracy": accuracy,
    }


def interval(groups: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Returns the mean over groups of the mean of each, with its 95% bootstrap interval over groups.

    Returns:
      a dict with accuracy, low, high (percentiles 2.5 and 97.5 of 1,000 resamples) and items.
    """
    means = np.array([np.mean(group) for group in groups])
    rng = np.random.default_rng(seed)
    resampled = [rng.choice(means, len(means)).mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {
        "accuracy": float(means.mean()),
        "low": float(low),
        "high": float(high),
        "items": sum(map(len, groups)),
    }
