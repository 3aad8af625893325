"""What a job would make of a corpus, and how long it would take, without making it.

The plan is made as the job makes it, but in a temporary folder; texts are tokenized, all or a sample of
them; and the first utterances are done in earnest to see how fast that goes.
"""

import contextlib
import dataclasses
import math
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from soda_jax.data.bits import packing
from soda_jax.data.manifest import Manifest, tokens_by_view
from soda_jax.data.splitting import RECORD_TOKENS
from soda_jax.errors import UserError
from soda_jax.progress import track
from soda_jax.tokens.text import TextTokenizer
from tokenize_pipeline.estimate import Estimate, SplitEstimate
from tokenize_pipeline.options import Options
from tokenize_pipeline.plan import (
    SPLITS,
    Plan,
    ShardPlan,
    plan_folder,
    read_documents,
    rejected_path,
)
from tokenize_pipeline.quarantine import count_by_reason, read_rows
from tokenize_pipeline.rate import measure_rate
from tokenize_pipeline.readers import texts
from tokenize_pipeline.request import read_request

SAMPLE_TEXTS = 5_000
SAMPLE_BYTES = 16 * 2**20
# What a record takes beside its content: header and checksum, an id of some 20 bytes, its chunk.
_RECORD_BYTES = 24 + 20 + 55
_UTTERANCE_BYTES = 6
_BLOCK_BYTES = 65_536  # an ArrayRecord file is whole blocks, and one more for its footer
# Of the index: a row for each record, a hash for each document, the frame of the .npz file.
_INDEX_BYTES = {"records": 21, "documents": 8, "shards": 1_750}
_COMPRESSED_AT_ONCE = 32_768  # bytes of text, about those of a record


@dataclasses.dataclass
class _Texts:
    """What was counted in the texts of a split; lengths in bytes of UTF-8.

    Attributes:
      count: number of texts.
      length: of all of them.
      sampled: number of texts that were tokenized.
      sampled_length: of those.
      tokens: that they have.
      whole: length of what was compressed.
      compressed: to which length.
    """

    count: int = 0
    length: int = 0
    sampled: int = 0
    sampled_length: int = 0
    tokens: int = 0
    whole: int = 0
    compressed: int = 0

    def __add__(self, other: "_Texts") -> "_Texts":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return _Texts(*(a + b for a, b in pairs))


def dry_run(options: Options, rate: float | None = None) -> Estimate:
    """Looks at a corpus as `tokenize` would; writes nothing to `options.output`.

    Args:
      options: of the job.
      rate: seconds of audio (or bytes of text) done in a second; None to measure it.

    Raises:
      UserError: as `tokenize` for wrong settings and inputs; for a rate that is not positive.
    """
    if rate is not None and not rate > 0:
        raise UserError(f"--rate={rate:g} must be positive")
    request = read_request(options)
    with tempfile.TemporaryDirectory(prefix="soda-dry-run-") as name:
        folder = plan_folder(Path(name), request.generation)
        plan = request.make_plan(folder)
        if not plan.shards and not plan.counts["rejected_rows"] and not request.generation:
            raise UserError(f"--input={options.input} holds no document")
        counted = _count_texts(plan, folder, request.tokenizer)
        measured = None if rate else measure_rate(request, plan, Path(name))
        rejected = count_by_reason(read_rows(rejected_path(folder)))
    every = counted["train"] + counted["validation"]
    splits = {
        split: _estimate(
            [shard for shard in plan.shards if shard.split == split],
            found if every.sampled == every.count else _scaled(every, found),
            every.compressed / max(every.whole, 1),
            request.before,
        )
        for split, found in counted.items()
    }
    return Estimate(
        request.reader.KIND,
        splits,
        plan.counts,
        rejected,
        every.count,
        every.sampled,
        rate or (measured.rate if measured else 0.0),
        measured,
    )


def _count_texts(plan: Plan, folder: Path, tokenizer: TextTokenizer) -> dict[str, _Texts]:
    """The texts of each split; of a large corpus every n-th is tokenized."""
    utterances = sum(shard.utterances for shard in plan.shards)
    step = -(-utterances // SAMPLE_TEXTS)
    if plan.settings["kind"] == "text":
        step = max(step, int(sum(shard.weight for shard in plan.shards) / SAMPLE_BYTES) + 1)
    counted = {split: _Texts() for split in SPLITS}
    place = 0
    for shard in track(plan.shards, "reading texts, shards"):
        found = counted[shard.split]
        for document in read_documents(folder, shard):
            sample = []
            for text in texts([document]):
                found.count += 1
                found.length += len(text.encode())
                if place % step == 0:
                    sample.append(text)
                place += 1
            for text in sample:
                found.sampled += 1
                found.sampled_length += len(text.encode())
                with contextlib.suppress(UserError):  # the job quarantines it
                    found.tokens += len(tokenizer.encode(text))
            if sample:
                joined = "".join(texts([document])).encode()[:_COMPRESSED_AT_ONCE]
                found.whole += len(joined)
                found.compressed += len(zlib.compress(joined, 9))
    return counted


def _scaled(every: _Texts, split: _Texts) -> _Texts:
    """A split with as many tokens a byte as the whole sample has."""
    tokens = round(split.length * every.tokens / max(every.sampled_length, 1))
    return dataclasses.replace(split, tokens=tokens)


def _estimate(
    shards: Sequence[ShardPlan], found: _Texts, compression: float, manifest: Manifest
) -> SplitEstimate:
    """A split of these shards; `compression` is the share of its length that a text keeps on disk."""
    layout, codec = manifest.layout, manifest.codec
    work = sum(shard.weight for shard in shards)
    documents = sum(shard.documents for shard in shards)
    utterances = sum(shard.utterances for shard in shards)
    frames = 0
    if codec:  # the last frame of an utterance is filled up: half a frame each
        frames = round(work * codec["frame_rate"] + utterances / 2)
    totals = {
        "documents": documents,
        "utterances": utterances,
        "text_tokens": found.tokens,
        "frames": frames,
    }
    tokens = tokens_by_view(manifest.kind, layout.codebooks, totals)
    bits = found.tokens * packing((layout.text_size,)).row_bits
    bits += frames * packing(layout.codebook_sizes).row_bits if frames else 0
    records = documents + max(tokens.values()) // RECORD_TOKENS
    content = bits / 8 + found.length * compression
    content += records * _RECORD_BYTES + utterances * _UTTERANCE_BYTES
    blocks = sum(math.ceil(content / len(shards) / _BLOCK_BYTES) + 1 for _ in shards)
    sizes = {"records": records, "documents": documents, "shards": len(shards)}
    index = sum(each * sizes[name] for name, each in _INDEX_BYTES.items())
    return SplitEstimate(len(shards), work, totals, tokens, blocks * _BLOCK_BYTES + index)
