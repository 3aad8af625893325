"""Estimates a job by timing one shard, without writing the data set.

The plan is made in a temporary folder. The first utterances of the plan are tokenized there as one
shard: first untimed, to load libraries and compile the codec, then timed. The shard is made larger
until it takes `TIMED_SECONDS`. Its tokens, bytes and time are scaled by the ratio of the expected
work of all shards to its own.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from soda_jax.data.format.manifest import SPLITS, Manifest, tokens_by_view
from soda_jax.data.format.shards import index_path, read_index
from tokenize_pipeline.merge import skipped_lines
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import REJECTED, Plan, ShardPlan, plan_folder, read_documents
from tokenize_pipeline.planner import ShardLines, work_of
from tokenize_pipeline.quarantine import count_by_reason, list_reasons, read_rows
from tokenize_pipeline.readers import DocumentSource
from tokenize_pipeline.results import ShardResult, shard_file
from tokenize_pipeline.settings import Job, load_text_tokenizer, read_job
from tokenize_pipeline.worker import tokenize_shard

TIMED_SECONDS = 2.0  # the timed shard takes at least this long, unless the corpus is too small
MOST_UTTERANCES = 2**14  # of the timed shard; needed because missing files have no expected work
FIRST_WORK = {"speech": 30.0, "text": 2.0**18}  # size of the first shard, in seconds or bytes
_LONGEST_SECONDS = 30.0  # longer utterances with an end time are cut in the timed shard
_BLOCK_BYTES = 65_536  # an ArrayRecord file has whole blocks, plus one for the footer


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The result of a dry run.

    Attributes:
      plan: the plan of the job.
      manifest: manifest of the previous generation, or an empty one.
      rejected: number of rejected input rows, by reason.
      timed: the timed shard, with one utterance per document; None if there is nothing to tokenize.
      result: result of the timed shard.
      elapsed: duration of the timed shard, in seconds.
      stored: size of the records of the timed shard, in bytes.
    """

    plan: Plan
    manifest: Manifest
    rejected: dict[str, int]
    timed: ShardPlan | None = None
    result: ShardResult | None = None
    elapsed: float = 0.0
    stored: int = 0

    @property
    def seconds(self) -> float | None:
        """Seconds that the job takes in one process, after planning; None if unknown."""
        if not self.timed or not self.result or not self.result.info:
            return None
        return self.elapsed * sum(shard.weight for shard in self.plan.shards) / self.timed.weight

    def totals(self, split: str) -> dict[str, int]:
        """Returns the number of shards, documents and utterances of a split.

        If an utterance of the timed shard was usable, also returns estimates of text_tokens, frames
        and bytes (on disk).
        """
        shards = [shard for shard in self.plan.shards if shard.split == split]
        totals = {"shards": len(shards)}
        for name in ("documents", "utterances"):
            totals[name] = sum(getattr(shard, name) for shard in shards)
        if self.timed and self.result and (info := self.result.info):
            ratio = sum(shard.weight for shard in shards) / self.timed.weight
            totals["text_tokens"] = round(info.text_tokens * ratio)
            totals["frames"] = round(info.frames * ratio)
            blocks = math.ceil(self.stored * ratio / max(len(shards), 1) / _BLOCK_BYTES) + 1
            totals["bytes"] = len(shards) * blocks * _BLOCK_BYTES
        return totals

    def describe(self, name: str) -> str:
        """Returns the estimate as lines of text; `name` is printed as the name of the data set."""
        lines = [f"dry run: nothing is written to {name}"]
        for split in SPLITS:
            totals = self.totals(split)
            counts = [f"{totals[key]:,} {key}" for key in ("documents", "utterances", "shards")]
            lines.append(f"{split}: {', '.join(counts)}")
            if "bytes" in totals and totals["documents"]:
                lines += self._describe_tokens(totals)
        lines += [*skipped_lines(self.plan.counts), f"rejected rows: {list_reasons(self.rejected)}"]
        return "\n".join([*lines, *self._describe_time()])

    def _describe_tokens(self, totals: dict[str, int]) -> Iterator[str]:
        if codec := self.manifest.codec:
            yield f"  about {totals['frames'] / codec['frame_rate'] / 3600:,.2f} hours of audio"
        tokens = tokens_by_view(self.manifest.kind, self.manifest.layout.codebooks, totals)
        for view, count in tokens.items():
            both = f" in each order, {2 * count:,} in both" if view == "S+A+T" else ""
            yield f"  {view:<6} about {count:,} tokens{both}"
        each = totals["bytes"] / max(tokens.values())
        yield f"  about {totals['bytes']:,} bytes on disk, {each:.3f} per token"

    def _describe_time(self) -> Iterator[str]:
        if not self.timed or not self.result:
            yield "time: none, there is nothing to tokenize"
            return
        tried, bad = f"{self.timed.utterances:,}", self.result.quarantine
        if self.seconds is None:
            yield f"time: unknown, none of the first {tried} utterances is usable: {bad[0].message}"
            return
        amount, unit = self.timed.weight, "bytes of text"
        if (codec := self.manifest.codec) and (info := self.result.info):
            amount, unit = info.frames / codec["frame_rate"], "seconds of audio"
        yield (
            f"rate: {amount / self.elapsed:,.0f} {unit} per second in this process, measured on the "
            f"first utterances ({amount:,.0f} {unit} in {self.elapsed:.1f} s)"
        )
        if bad:
            yield f"  unusable among the {tried} tried: {list_reasons(count_by_reason(bad))}"
        minutes = self.seconds / 60
        duration = f"{minutes:,.0f} min" if minutes >= 2 else f"{self.seconds:.0f} s"
        duration = f"{minutes / 60:,.1f} h" if minutes >= 120 else duration
        yield f"time: about {duration} in one process, after planning"


def estimate(options: TokenizeOptions) -> Estimate:
    """Estimates the job of `options`; writes nothing to `options.output`.

    Raises:
      UserError: for invalid settings and inputs, as in `tokenize`.
    """
    job = read_job(options)
    with tempfile.TemporaryDirectory(prefix="soda-dry-run-") as name:
        folder = plan_folder(Path(name), job.generation)
        plan = job.make_plan(folder)
        rejected = count_by_reason(read_rows(folder / REJECTED))
        made = Estimate(plan, job.before, rejected)
        return _time_shard(job, made, folder, Path(name) / "timed") if plan.shards else made


def _time_shard(job: Job, made: Estimate, folder: Path, output: Path) -> Estimate:
    """Times the first utterances of the plan in `folder` as a shard of the data set `output`."""
    workers_job = job.for_workers(made.plan, output)
    load_text_tokenizer(job.options).save(output / "tokenizer")
    timed_folder = plan_folder(output, made.plan.generation)
    size = FIRST_WORK[job.before.kind]

    def write_shard() -> ShardPlan:
        lines, total = ShardLines(), 0.0
        for document, work in islice(_first_utterances(job, made.plan, folder), MOST_UTTERANCES):
            lines.add(document, max(work, 0.1))
            total += work
            if total >= size:
                break
        return lines.write(timed_folder, "train", 0)

    shard = write_shard()
    tokenize_shard(workers_job, shard)
    while True:
        began = time.perf_counter()
        tokenize_shard(workers_job, shard)
        elapsed = time.perf_counter() - began
        size *= 4
        larger = write_shard() if elapsed < TIMED_SECONDS else shard
        if larger.utterances == shard.utterances:
            break
        shard = larger
    result = ShardResult.load(timed_folder, shard)
    index = index_path(output / shard.split / shard_file(shard.number))
    stored = int(read_index(index).record_offsets[-1]) if result.info else 0
    return dataclasses.replace(made, timed=shard, result=result, elapsed=elapsed, stored=stored)


def _first_utterances(job: Job, plan: Plan, folder: Path) -> Iterator[tuple[DocumentSource, float]]:
    """Yields each utterance of the plan as a separate document, with its expected work.

    An utterance of more than 30 seconds with an end time is cut to its first 30 seconds, and its
    text in proportion.
    """
    work_of_utterance = work_of(job.before.kind, job.data_root)
    for shard in plan.shards:
        for document in read_documents(folder, shard):
            for number, utterance in enumerate(document.utterances):
                work = work_of_utterance(utterance)
                if utterance.end is not None and work > _LONGEST_SECONDS:
                    length = math.ceil(len(utterance.text) * _LONGEST_SECONDS / work)
                    end = (utterance.start or 0.0) + _LONGEST_SECONDS
                    text, work = utterance.text[:length], _LONGEST_SECONDS
                    utterance = dataclasses.replace(utterance, text=text, end=end)
                yield DocumentSource(f"{document.id}/{number}", (utterance,)), work
