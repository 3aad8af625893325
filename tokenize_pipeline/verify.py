"""A data set checked with all that stands beside its shards: the plans that made it, and its codec."""

from collections.abc import Iterator
from pathlib import Path

from soda_jax.data import verify as data
from soda_jax.data.manifest import Manifest
from soda_jax.data.verify_shard import Fault
from soda_jax.errors import UserError
from tokenize_pipeline.plan import Plan, plan_folder
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
    yield from _codec_faults(Path(dataset), manifests)


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
    """A plan names the digest of the generation before it, and a manifest that of its plan."""
    for number, manifest in manifests.items():
        folder = plan_folder(dataset, number)
        if not (folder / "plan.json").exists():
            continue  # it is not needed any more, and `soda retext` makes none
        name = f"plan/{folder.name}/plan.json"
        try:
            plan = Plan.load(folder)
        except UserError as error:
            yield Fault(name, str(error))
            continue
        if plan.digest != manifest.settings_digest:
            yield Fault(f"manifests/{number:04d}.json", f"settings_digest is not that of {name}")
        before = manifests.get(number - 1)
        if before is not None and plan.settings.get("after") != before.digest:
            yield Fault(
                f"manifests/{number - 1:04d}.json",
                f"its digest is {before.digest[:16]}…, {name} was made after another",
            )


def _codec_faults(dataset: Path, manifests: dict[int, Manifest]) -> Iterator[Fault]:
    described = manifests[max(manifests)].codec if manifests else None
    if described is None or not (dataset / "codec").is_dir():
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
