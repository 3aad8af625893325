"""Checks a data set, including its plans, its codec and its quarantine."""

from collections.abc import Iterator
from pathlib import Path

from soda_jax.data.checks import verify as data
from soda_jax.data.checks.verify import Fault
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.file_sums import differences
from tokenize_pipeline.merge import QUARANTINE, quarantine_of
from tokenize_pipeline.plan import Plan, check_file, documents_path, rejected_path
from tokenize_pipeline.results import ShardResult, has_result
from tokenize_pipeline.worker import load_codec_once


def verify(dataset: str | Path, generation: int = -1) -> Iterator[Fault]:
    """Yields the defects of a data set, none if it is intact. Shows progress.

    Args:
      dataset: folder of the data set.
      generation: generation whose shards are read; -1 for the newest.

    Raises:
      UserError: if there is no data set, or none of its manifests can be read.
    """
    yield from data.verify(dataset, generation)
    manifests = _manifests(Path(dataset))
    yield from _plan_faults(Path(dataset), manifests)
    if manifests:
        yield from _codec_faults(Path(dataset), manifests[max(manifests)])
        yield from _quarantine_faults(Path(dataset), manifests[max(manifests)])


def _manifests(dataset: Path) -> dict[int, Manifest]:
    """Returns the readable manifests by generation; the others are already reported."""
    found = {}
    for path in sorted((dataset / "manifests").glob("[0-9]*.json")):
        try:
            found[int(path.stem)] = Manifest.load(dataset, int(path.stem))
        except (UserError, ValueError):
            continue
    return found


def _plan_faults(dataset: Path, manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """Checks that the files of each plan are unchanged and match the manifest of its generation."""
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
                f"manifests/{plan.generation:04d}.json", f"settings_digest does not match {name}"
            )
        before = manifests.get(plan.generation - 1)
        if before is not None and plan.settings.get("after") != before.digest:
            yield Fault(
                f"manifests/{before.generation:04d}.json",
                f"its digest is {before.digest[:16]}…, {name} was made for another",
            )


def _file_faults(dataset: Path, folder: Path, plan: Plan) -> Iterator[Fault]:
    """Checks the `.jsonl` files that exist; those of a finished data set may be removed."""
    sums = {documents_path(folder, shard): shard.sha256 for shard in plan.shards}
    for path, sha256 in {**sums, rejected_path(folder): plan.rejected_sha256}.items():
        try:
            if path.exists():
                check_file(path, sha256)
        except UserError as error:
            yield Fault(path.relative_to(dataset).as_posix(), str(error))


def _result_faults(folder: Path, plan: Plan, manifests: dict[int, Manifest]) -> Iterator[Fault]:
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
            yield Fault(name, "it belongs to another plan")
        manifest = manifests.get(plan.generation)
        if manifest is None or result.info is None:
            continue
        if result.info not in manifest.splits.get(shard.split, ()):
            yield Fault(name, f"its shard {result.info.file} is not in the manifest")


def _codec_faults(dataset: Path, manifest: Manifest) -> Iterator[Fault]:
    """Checks the fingerprint of the saved codec; its files are already compared."""
    described = manifest.codec
    if described is None or not (dataset / "codec").is_dir():
        return
    if any(differences(dataset, manifest.front_end_files, "codec")):
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
