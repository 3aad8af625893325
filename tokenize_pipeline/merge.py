"""Merges the results of all shards into quarantine.jsonl and the next manifest.

The order is that of the plan, so the bytes do not depend on which worker was faster.
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
from tokenize_pipeline.plan import Plan, check_file, plan_folder, rejected_path, remove_plan
from tokenize_pipeline.quarantine import count_by_reason, json_lines, lost_count, read_rows
from tokenize_pipeline.results import ShardResult

QUARANTINE = "quarantine.jsonl"
NOTHING = "nothing to add"


class TooManyBadInputsError(UserError):
    """More inputs are bad than --max_bad_fraction allows."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of a job.

    Attributes:
      manifest: the manifest of the data set after the job.
      state: "finished", "was finished already" or "nothing to add".
      counts: counts of the plan: documents, utterances, rejected_rows, repeated_in_input,
        already_in_dataset.
      dropped_documents: documents without a usable utterance.
      bad: number of quarantined inputs of this generation, by reason.
    """

    manifest: Manifest
    state: str
    counts: dict[str, int]
    dropped_documents: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)

    def describe(self, name: str) -> str:
        """Returns a few lines for the user, in which the data set is called `name`."""
        lines = [f"{name}: {self.state}, generation {self.manifest.generation}"]
        for split in SPLITS:
            totals = self.manifest.totals(split)
            parts = [f"{totals[key]:,} {key}" for key in ("shards", "documents", "utterances")]
            parts.append(f"{totals['text_tokens']:,} text tokens")
            if self.manifest.codec:
                seconds = totals["frames"] / self.manifest.codec["frame_rate"]
                parts.append(f"{seconds / 3600:.2f} h of audio")
            lines.append(f"  {split}: {', '.join(parts)}")
        for key in ("already_in_dataset", "repeated_in_input"):
            if self.counts[key]:
                lines.append(f"  skipped, {key.replace('_', ' ')}: {self.counts[key]:,} documents")
        if self.state == NOTHING and self.bad:
            # No generation was added, so quarantine.jsonl does not list them.
            lines.append(f"  bad inputs, skipped: {_list_reasons(self.bad)}")
        elif self.state == NOTHING and self.counts["rejected_rows"]:
            lines.append(f"  rejected rows, skipped: {self.counts['rejected_rows']:,}")
        elif self.bad:
            lines.append(f"  bad inputs, in {QUARANTINE}: {_list_reasons(self.bad)}")
            lines.append(f"  documents without a usable utterance: {self.dropped_documents:,}")
        return "\n".join(lines)


def _list_reasons(bad: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in bad.items())


def quarantine_of(dataset: Path, manifest: Manifest) -> bytes:
    """Returns the rows of `quarantine.jsonl` up to the generation of `manifest`, in bytes.

    Later rows are ignored: a job that was killed or had too many bad inputs may have added them.

    Raises:
      UserError: if they do not match the checksum of the manifest.
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

    If nothing of an append is usable, its plan is removed and nothing is written.

    Args:
      dataset: folder of the data set; every shard of the plan is finished.
      plan: plan of this generation.
      before: manifest of the previous generation, or an empty one.
      max_bad_fraction: share of bad inputs above which no manifest is written.

    Raises:
      TooManyBadInputsError: if more are bad, or no input is usable.
      UserError: if a file that it reads is damaged.
    """
    folder = plan_folder(dataset, plan.generation)
    earlier = quarantine_of(dataset, before)
    check_file(rejected_path(folder), plan.rejected_sha256)
    rows = read_rows(rejected_path(folder))
    new: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    dropped = 0
    for shard in plan.shards:
        result = ShardResult.load(folder, shard)
        rows += result.quarantine
        dropped += result.dropped_documents
        if result.info:
            new[shard.split].append(result.info)
    bad = count_by_reason(rows)
    total = plan.counts["utterances"] + plan.counts["rejected_rows"]
    if plan.generation and not any(new.values()):
        remove_plan(folder)
        if lost_count(bad) <= max_bad_fraction * total:
            return Summary(before, NOTHING, plan.counts, dropped, bad)
        raise TooManyBadInputsError(
            f"no new input is usable, of {total} ({_list_reasons(bad)}; the first is "
            f"{rows[0].where}: {rows[0].message}): {dataset} is unchanged; fix the inputs"
        )
    write_atomic(dataset / QUARANTINE, earlier + json_lines(rows))
    _check_share(dataset, folder, bad, total, max_bad_fraction, any(new.values()))
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


def _check_share(
    dataset: Path,
    folder: Path,
    bad: dict[str, int],
    total: int,
    max_bad_fraction: float,
    usable: bool,
) -> None:
    count = lost_count(bad)
    if usable and count <= max_bad_fraction * total:
        return
    reasons = _list_reasons(bad)
    start_again = f"fix the inputs and remove {folder if folder.name != '0000' else dataset}"
    if usable:
        raise TooManyBadInputsError(
            f"{count} of {total} inputs are bad ({reasons}), more than --max_bad_fraction="
            f"{max_bad_fraction:g}: see {dataset / QUARANTINE}; run again with a larger fraction "
            f"(finished shards are kept), or {start_again}"
        )
    raise TooManyBadInputsError(
        f"no input is usable, of {total} ({reasons}): see {dataset / QUARANTINE}; {start_again}"
    )
