"""A data set checked with all that stands beside its shards: the plans that made it, and its codec."""

from collections.abc import Iterator
from pathlib import Path

from soda_jax.data import verify as data
from soda_jax.data.manifest import Manifest
from soda_jax.data.verify_shard import Fault
from soda_jax.errors import UserError
from soda_jax.file_sums import differences
from tokenize_pipeline.merge import QUARANTINE, quarantine_of
from tokenize_pipeline.plan import Plan, check_file, documents_path, rejected_path
from tokenize_pipeline.results import ShardResult, has_result
from tokenize_pipeline.worker import load_codec_once


def verify(dataset: str | Path, generation: int = -1) -> Iterator[Fault]:
    """Yields what is wrong with a data set; nothing if it is sound. Shows its progress.

    Args:
      dataset: its folder.
      generation: whose shards are read, the newest for -1.

    Raises:
      UserError: if there is no data set, or no manifest of it can be read.
    """
    yield from data.verify(dataset, generation)
    manifests = _manifests(Path(dataset))
    yield from _plan_faults(Path(dataset), manifests)
    if manifests:
        yield from _codec_faults(Path(dataset), manifests[max(manifests)])
        yield from _quarantine_faults(Path(dataset), manifests[max(manifests)])


def _manifests(dataset: Path) -> dict[int, Manifest]:
    """The generations that can be read: the others have been named."""
    found = {}
    for path in sorted((dataset / "manifests").glob("[0-9]*.json")):
        try:
            found[int(path.stem)] = Manifest.load(dataset, int(path.stem))
        except (UserError, ValueError):
            continue
    return found


def _plan_faults(dataset: Path, manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """Every file of every plan is the one that was written, and is of the manifest of its number."""
    for path in sorted((dataset / "plan").glob("[0-9]*/plan.json")):
        folder = path.parent
        name = f"plan/{folder.name}/plan.json"
        try:
            plan = Plan.load(folder)
        except UserError as error:
            yield Fault(name, str(error))
            continue
        yield from _file_faults(dataset, folder, plan)
        yield from _result_faults(folder, plan, manifests)
        manifest = manifests.get(plan.generation)
        if manifest is not None and plan.digest != manifest.settings_digest:
            yield Fault(
                f"manifests/{plan.generation:04d}.json", f"settings_digest is not that of {name}"
            )
        before = manifests.get(plan.generation - 1)
        if before is not None and plan.settings.get("after") != before.digest:
            yield Fault(
                f"manifests/{before.generation:04d}.json",
                f"its digest is {before.digest[:16]}…, {name} was made after another",
            )


def _file_faults(dataset: Path, folder: Path, plan: Plan) -> Iterator[Fault]:
    """The `.jsonl` files that are there; those of a finished data set may be removed."""
    sums = {documents_path(folder, shard): shard.sha256 for shard in plan.shards}
    for path, sha256 in {**sums, rejected_path(folder): plan.rejected_sha256}.items():
        try:
            if path.exists():
                check_file(path, sha256)
        except UserError as error:
            yield Fault(path.relative_to(dataset).as_posix(), str(error))


def _result_faults(folder: Path, plan: Plan, manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """A result that is there is of its plan, and names a shard of the manifest."""
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
            yield Fault(name, "it is the result of another plan")
        manifest = manifests.get(plan.generation)
        if manifest is None or result.info is None:
            continue
        if result.info not in manifest.splits.get(shard.split, ()):
            yield Fault(name, f"its shard {result.info.file} is not that of the manifest")


def _codec_faults(dataset: Path, manifest: Manifest) -> Iterator[Fault]:
    """The saved codec is the one that the manifest names; its files have been compared already."""
    described = manifest.codec
    if described is None or not (dataset / "codec").is_dir():
        return
    if any(differences(dataset, manifest.front_end, "codec")):
        return
    try:
        codec = load_codec_once(f"{described['name']}:{dataset / 'codec'}")
        if codec.fingerprint != described["fingerprint"]:
            raise UserError(
                f"its fingerprint is {codec.fingerprint}, the manifest says "
                f"{described['fingerprint']}"
            )
    except UserError as error:
        yield Fault("codec", str(error))


def _quarantine_faults(dataset: Path, manifest: Manifest) -> Iterator[Fault]:
    try:
        quarantine_of(dataset, manifest)
    except UserError as error:
        yield Fault(QUARANTINE, str(error))
