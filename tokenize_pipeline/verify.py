"""Finds damaged files of a finished data set, and texts that the tokenizer changes."""

import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from soda_jax.data.checks import verify as data
from soda_jax.data.checks.verify import Fault
from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.reading import read_records
from soda_jax.data.format.records import RecordData
from soda_jax.errors import UserError
from soda_jax.file_sums import differences
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import load_tokenizer
from tokenize_pipeline.encoding import load_codec_once
from tokenize_pipeline.merge import QUARANTINE, quarantine_of
from tokenize_pipeline.plan import REJECTED, Plan, check_file
from tokenize_pipeline.results import ShardResult, has_result

_TEXTS = 100  # number of texts that `read_back` compares
_SHOWN = 40  # maximum characters of a text in the warning


def verify(dataset: str | Path, generation: int = -1) -> Iterator[Fault]:
    """Yields the errors in a data set, its plans, codec and quarantine.jsonl; shows progress.

    Args:
      dataset: folder of the data set.
      generation: generation whose shards are read; -1 for the newest.

    Raises:
      UserError: if there is no data set, or none of its manifests can be read.
    """
    yield from data.verify(dataset, generation)
    dataset = Path(dataset)
    manifests: dict[int, Manifest] = {}
    for path in sorted((dataset / "manifests").glob("[0-9]*.json")):
        try:
            manifests[int(path.stem)] = Manifest.load(dataset, int(path.stem))
        except (UserError, ValueError):  # reported by data.verify
            continue
    for path in sorted((dataset / "plan").glob("[0-9]*/plan.json")):
        try:
            plan = Plan.load(path.parent)
        except UserError as error:
            yield Fault(path.relative_to(dataset).as_posix(), str(error))
            continue
        yield from _file_faults(path.parent, plan)
        yield from _result_faults(path.parent, plan, manifests.get(plan.generation))
        yield from _digest_faults(path.relative_to(dataset).as_posix(), plan, manifests)
    if manifests:
        newest = manifests[max(manifests)]
        yield from _codec_faults(dataset, newest)
        try:
            quarantine_of(dataset, newest)
        except UserError as error:
            yield Fault(QUARANTINE, str(error))


def _file_faults(folder: Path, plan: Plan) -> Iterator[Fault]:
    """Checks the existing `.jsonl` files of a plan; a finished data set does not need them."""
    sums = {shard.file: shard.sha256 for shard in plan.shards} | {REJECTED: plan.rejected_sha256}
    for name, sha256 in sums.items():
        try:
            if (folder / name).exists():
                check_file(folder / name, sha256)
        except UserError as error:
            yield Fault(f"plan/{folder.name}/{name}", str(error))


def _result_faults(folder: Path, plan: Plan, manifest: Manifest | None) -> Iterator[Fault]:
    """Checks that each existing result belongs to its plan and matches a shard of the manifest."""
    for shard in plan.shards:
        if not has_result(folder, shard):
            continue
        name = f"plan/{folder.name}/results/{shard.name}.json"
        try:
            result = ShardResult.load(folder, shard)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Fault(name, str(error))
            continue
        if result.plan_digest != plan.digest:
            yield Fault(name, "its plan_digest is that of another plan")
        info = result.info
        if manifest and info and info not in manifest.splits.get(shard.split, ()):
            yield Fault(name, f"its shard {info.file} is not in the manifest")


def _digest_faults(name: str, plan: Plan, manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """Checks the plan `name` against the manifests of its generation and of the previous one."""
    manifest, before = (manifests.get(plan.generation - step) for step in (0, 1))
    if manifest and plan.digest != manifest.settings_digest:
        file = f"manifests/{plan.generation:04d}.json"
        yield Fault(file, f"settings_digest does not match {name}")
    if before and plan.settings.get("after") != before.digest:
        file = f"manifests/{before.generation:04d}.json"
        yield Fault(file, f"its digest is {before.digest[:16]}…, which is not the one in {name}")


def _codec_faults(dataset: Path, manifest: Manifest) -> Iterator[Fault]:
    """Checks the fingerprint of the saved codec, if the checksums of its files are correct."""
    described = manifest.codec
    if described is None or not (dataset / "codec").is_dir():
        return
    if any(differences(dataset, manifest.front_end_files, "codec")):
        return
    try:
        codec = load_codec_once(f"{described['name']}:{dataset / 'codec'}")
    except UserError as error:
        yield Fault("codec", str(error))
        return
    found, wanted = codec.fingerprint, described["fingerprint"]
    if found != wanted:
        yield Fault("codec", f"its fingerprint is {found}, the manifest has {wanted}")


def read_back(dataset: str | Path, manifest: Manifest) -> str:
    """Returns a warning if any of the first 100 texts differs from its decoded ids, else "".

    A tokenizer may change case or white space, for example, and a model then learns the changed
    spelling. Texts that are canonically equivalent in Unicode (equal in NFC) count as equal.
    """
    tokenizer = load_tokenizer(Path(dataset) / "tokenizer")
    utterances = islice(_whole_utterances(Path(dataset), manifest), _TEXTS)
    pairs = [(utterance.text, tokenizer.decode(utterance.text_ids)) for utterance in utterances]
    changed = [pair for pair in pairs if len({unicodedata.normalize("NFC", t) for t in pair}) == 2]
    if not changed:
        return ""
    text, decoded = changed[0]
    return (
        f"  the tokenizer decodes {len(changed)} of the first {len(pairs)} texts with another "
        f"spelling: {text[:_SHOWN]!r} as {decoded[:_SHOWN]!r}"
    )


def _whole_utterances(dataset: Path, manifest: Manifest) -> Iterator[Utterance]:
    """Yields only unsplit utterances, because the text of a piece may not match its ids."""
    for split in SPLITS:
        for info in manifest.splits.get(split, ()):
            for record in read_records(dataset / split / info.file, manifest.layout):
                if not isinstance(record, RecordData):  # damaged
                    continue
                if record.part == "whole" or (record.first and record.last):
                    yield from record.utterances
