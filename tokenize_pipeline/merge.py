"""Merges the results of all shards into quarantine.jsonl and the next manifest.

Results are merged in plan order, so the bytes do not depend on which worker was faster.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import google_crc32c

from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.shards import ShardInfo
from soda_jax.errors import UserError
from soda_jax.file_sums import file_sum
from soda_jax.files import write_atomic
from tokenize_pipeline.plan import REJECTED, Plan, check_file, plan_folder, remove_plan
from tokenize_pipeline.quarantine import (
    count_by_reason,
    json_lines,
    list_reasons,
    lost_count,
    read_rows,
)
from tokenize_pipeline.results import ShardResult

QUARANTINE = "quarantine.jsonl"
NOTHING = "nothing to add"


class TooManyBadInputsError(UserError):
    """Raised if more inputs are bad than --max_bad_fraction allows, or no input is usable."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of a job.

    Attributes:
      manifest: the manifest of the data set after the job.
      state: "finished", "was finished already" or "nothing to add".
      counts: counts of the plan: documents, utterances, rejected_rows, repeated_in_input,
        already_in_dataset.
      dropped_documents: documents without a usable utterance.
      bad: number of bad inputs of this job, by reason.
    """

    manifest: Manifest
    state: str
    counts: dict[str, int]
    dropped_documents: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)

    def describe(self, name: str) -> str:
        """Returns a summary of a few lines; `name` is printed as the name of the data set."""
        lines = [f"{name}: {self.state}, generation {self.manifest.generation}"]
        for split in SPLITS:
            totals = self.manifest.totals(split)
            parts = [f"{totals[key]:,} {key}" for key in ("shards", "documents", "utterances")]
            parts.append(f"{totals['text_tokens']:,} text tokens")
            if self.manifest.codec:
                seconds = totals["frames"] / self.manifest.codec["frame_rate"]
                parts.append(f"{seconds / 3600:.2f} h of audio")
            lines.append(f"  {split}: {', '.join(parts)}")
        lines += [f"  {line}" for line in skipped_lines(self.counts)]
        if self.state == NOTHING and self.bad:
            # No generation was added, so quarantine.jsonl does not contain these inputs.
            lines.append(f"  bad inputs, skipped: {list_reasons(self.bad)}")
        elif self.state == NOTHING and self.counts["rejected_rows"]:
            lines.append(f"  rejected rows, skipped: {self.counts['rejected_rows']:,}")
        elif self.bad:
            lines.append(f"  bad inputs, in {QUARANTINE}: {list_reasons(self.bad)}")
            lines.append(f"  documents without a usable utterance: {self.dropped_documents:,}")
        return "\n".join(lines)


def skipped_lines(counts: dict[str, int]) -> list[str]:
    """Returns one line per reason why the plan skipped documents, from the counts of the plan."""
    return [
        f"skipped, {key.replace('_', ' ')}: {counts[key]:,} documents"
        for key in ("already_in_dataset", "repeated_in_input")
        if counts[key]
    ]


def quarantine_of(dataset: Path, manifest: Manifest) -> bytes:
    """Returns the bytes of `quarantine.jsonl` up to the generation of `manifest`.

    Later rows are ignored, because a job that was killed or had too many bad inputs may have added
    them.

    Raises:
      UserError: if the rows do not match the checksum of the manifest.
    """
    size, crc = manifest.quarantine
    path = dataset / QUARANTINE
    rows = path.read_bytes()[:size] if path.exists() else b""
    if (len(rows), f"{google_crc32c.value(rows):08x}") != (size, crc):
        raise UserError(
            f"{path} is damaged: its first {size:,} bytes do not have crc32c {crc}; restore the file"
        )
    return rows


def merge(dataset: Path, plan: Plan, before: Manifest, max_bad_fraction: float) -> Summary:
    """Writes quarantine.jsonl and, unless too many inputs are bad, the manifest of the generation.

    If an append has no usable input, nothing is written, and its plan is removed.

    Args:
      dataset: folder of the data set; every shard of the plan is finished.
      plan: plan of this generation.
      before: manifest of the previous generation, or an empty one.
      max_bad_fraction: share of bad inputs above which no manifest is written.

    Raises:
      TooManyBadInputsError: if the share of bad inputs is larger than `max_bad_fraction`, or no
        input of a new data set is usable.
      UserError: if an existing quarantine.jsonl or a file of the plan is damaged.
    """
    folder = plan_folder(dataset, plan.generation)
    earlier = quarantine_of(dataset, before)
    check_file(folder / REJECTED, plan.rejected_sha256)
    rows = read_rows(folder / REJECTED)
    new: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    dropped = 0
    for shard in plan.shards:
        result = ShardResult.load(folder, shard)
        rows += result.quarantine
        dropped += result.dropped_documents
        if result.info:
            new[shard.split].append(result.info)
    bad = count_by_reason(rows)
    reasons, lost = list_reasons(bad), lost_count(bad)
    total = plan.counts["utterances"] + plan.counts["rejected_rows"]
    usable, accepted = any(new.values()), lost <= max_bad_fraction * total
    if plan.generation and not usable:
        remove_plan(folder)
        if accepted:
            return Summary(before, NOTHING, plan.counts, dropped, bad)
        raise TooManyBadInputsError(
            f"0 of {total} new inputs are usable ({reasons}; the first is {rows[0].where}: "
            f"{rows[0].message}): {dataset} is unchanged; fix the inputs"
        )
    write_atomic(dataset / QUARANTINE, earlier + json_lines(rows))
    start_again = f"fix the inputs and remove {folder if plan.generation else dataset}"
    if not usable:
        raise TooManyBadInputsError(
            f"0 of {total} inputs are usable ({reasons}): see {dataset / QUARANTINE}; {start_again}"
        )
    if not accepted:
        raise TooManyBadInputsError(
            f"{lost} of {total} inputs are bad ({reasons}), more than --max_bad_fraction="
            f"{max_bad_fraction:g}: see {dataset / QUARANTINE}; run again with a larger fraction "
            f"(finished shards are kept), or {start_again}"
        )
    manifest = dataclasses.replace(
        before,
        generation=plan.generation,
        splits={split: (*before.splits.get(split, ()), *new[split]) for split in SPLITS},
        settings_digest=plan.digest,
        quarantined=dict(Counter(before.quarantined) + Counter(bad)),
        quarantine=file_sum(dataset / QUARANTINE),
    )
    manifest.save(dataset)
    return Summary(manifest, "finished", plan.counts, dropped, bad)
