"""A whole data set checked: manifests, tokenizer, every shard and index, every record and document.

Everything that has a checksum or stands in two places is compared, so a flipped byte in a shard, an
index or a manifest is found. What a fault makes unusable is named as a `masked` file names it.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from soda_jax.data.checks.verify_shard import Fault, ShardVerifier
from soda_jax.data.format.manifest import SPLITS, Manifest, generation_path
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, differences
from soda_jax.progress import progress
from soda_jax.tokens.text import load_tokenizer, make_layout

# What all generations of a data set have in common.
_LASTING = ("kind", "layout", "codec", "tokenizer_fingerprint", "front_end")


def verify(directory: str | Path, generation: int = -1) -> Iterator[Fault]:
    """Yields what is wrong with a data set; nothing if it is sound. Shows its progress.

    Args:
      directory: of the data set.
      generation: whose shards are read, the newest for -1; manifests are checked from the first on.

    Raises:
      UserError: if there is no data set, or no manifest of it can be read.
    """
    directory = Path(directory)
    manifests, faults = _read_manifests(directory, generation)
    yield from faults
    newest = manifests[max(manifests)]
    yield from _front_end_faults(directory, newest)
    shards = [(split, shard) for split in SPLITS for shard in newest.splits.get(split, ())]
    verifier = ShardVerifier(directory, newest.kind, newest.layout)
    with progress("verifying, records", sum(shard.records for _, shard in shards)) as bar:
        for number, (split, shard) in enumerate(shards):
            note = f"shard {number + 1} of {len(shards)}"
            yield from verifier.faults(split, shard, functools.partial(bar.advance, 1, note))
    yield from _repeated_documents(verifier.hashes)


def _read_manifests(directory: Path, last: int) -> tuple[dict[int, Manifest], list[Fault]]:
    """The generations up to `last` that can be read, by number, and what is wrong with the files."""
    manifests: dict[int, Manifest] = {}
    faults: list[Fault] = []
    newest = None
    if last >= 0 and not generation_path(directory, last).exists():
        Manifest.load(directory, last)  # says what is missing
    try:
        newest = Manifest.load(directory)
        last = newest.generation if last < 0 else last
    except UserError as error:
        if not (directory / "manifests").is_dir():
            raise
        faults.append(Fault("manifest.json", str(error)))
    paths = sorted((directory / "manifests").glob("[0-9]*.json"))
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    # A file beyond the newest is of an append that was killed between two renames: it goes on.
    wanted = range(last + 1) if last >= 0 else numbers
    for number in wanted:
        file = generation_path(directory, number)
        name = f"manifests/{file.name}"
        if not file.exists():
            faults.append(
                Fault(name, f"it is missing, though manifest.json is of generation {last}")
            )
            continue
        try:
            manifests[number] = Manifest.load(directory, number)
        except UserError as error:
            faults.append(Fault(name, str(error)))
    if newest is not None:
        faults += _newest_faults(newest, manifests.get(newest.generation))
        if last not in manifests and newest.generation == last:
            manifests[last] = newest
    if not manifests:
        raise UserError(f"{directory} has no manifest that can be read: {faults[0].message}")
    faults += _succession_faults(manifests)
    return manifests, faults


def _newest_faults(newest: Manifest, twin: Manifest | None) -> Iterator[Fault]:
    """manifest.json and the file of its generation hold the same bytes."""
    if twin is None or twin.digest == newest.digest:
        return
    ours, theirs = newest.to_json(), twin.to_json()
    keys = ", ".join(key for key in ours if ours[key] != theirs[key])
    name = f"manifests/{newest.generation:04d}.json"
    yield Fault("manifest.json", f"it differs from {name} in {keys}: one of the two is damaged")


def _succession_faults(manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """A generation has all shards of the one before and is of the same kind."""
    for number, manifest in manifests.items():
        before = manifests.get(number - 1)
        if before is None:
            continue
        name = f"manifests/{number:04d}.json and {number - 1:04d}.json"
        for split in SPLITS:
            kept = manifest.splits.get(split, ())[: len(before.splits.get(split, ()))]
            if kept != before.splits.get(split, ()):
                yield Fault(name, f"they differ in the {split} shards that both should have")
        for field in _LASTING:
            if getattr(manifest, field) != getattr(before, field):
                yield Fault(name, f"they differ in {field}, which never changes")


def _front_end_faults(directory: Path, manifest: Manifest) -> Iterator[Fault]:
    """Tokenizer and codec are the files that the manifest lists, and the tokenizer is its own."""
    damaged = [
        Fault(name, message)
        for folder in FRONT_END
        for name, message in differences(directory, manifest.front_end, folder)
    ]
    yield from damaged
    if not (directory / "tokenizer").exists() or any(
        fault.file.startswith("tokenizer/") for fault in damaged
    ):
        return
    try:
        tokenizer = load_tokenizer(directory / "tokenizer")
        if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
            raise UserError(
                f"its fingerprint is {tokenizer.fingerprint}, the manifest says "
                f"{manifest.tokenizer_fingerprint}"
            )
        if make_layout(tokenizer, manifest.layout.codebook_sizes) != manifest.layout:
            raise UserError("its ids are not those of the manifest's layout")
    except UserError as error:
        yield Fault("tokenizer", str(error))


def _repeated_documents(hashes: dict[str, np.ndarray]) -> Iterator[Fault]:
    """A document stands once in a data set: not twice in a split, and not in two splits."""
    names = list(hashes)
    if not names:
        return
    every = np.concatenate([hashes[name] for name in names])
    shards = np.repeat(np.arange(len(names)), [len(hashes[name]) for name in names])
    order = np.argsort(every, kind="stable")
    again = np.flatnonzero(every[order][1:] == every[order][:-1])
    for place in again.tolist():
        first, second = names[shards[order[place]]], names[shards[order[place + 1]]]
        yield Fault(
            second, f"a document of it (hash {every[order[place]]:016x}) is also in {first}"
        )
