"""Reads checkpoints and chooses the newest valid one, even while a run writes new ones."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from etils import epath

from soda_jax.checkpoints import digest, folder, tree
from soda_jax.errors import UserError
from soda_jax.parallel import hosts

FORMAT_VERSION = 2
# Folders in a step. Parameters are separate, so that inference reads only these.
PARAMS, TRAINING, METADATA = "params", "training", "metadata"
_DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class RestoreReport:
    """The chosen step, and the newer steps that were skipped, each with the reason."""

    step: int
    verified: bool
    skipped: tuple[tuple[int, str], ...] = ()

    def lines(self) -> list[str]:
        """Returns messages about skipped and unverified steps; empty if there are none."""
        messages = [f"checkpoint {step} skipped: {reason}" for step, reason in self.skipped]
        if not self.verified:
            messages.append(
                f"checkpoint {self.step} is used without verification: it has no digest"
            )
        return [*messages, f"continuing from checkpoint {self.step}"] if messages else []


class CheckpointReader:
    """Reads the checkpoints of one folder; every process of a run must make the same calls.

    Attributes:
      rejected: the steps that were found unusable, as a dict from step to reason.
    """

    def __init__(self, directory: str | PathLike[str]):
        """Sets the checkpoint folder, which need not exist.

        Args:
          directory: parent of the step folders, a path such as WORKDIR/checkpoints, or gs://…

        Raises:
          UserError: for a URL other than gs://, or if a package for gs:// is missing.
        """
        self.directory = folder.opened(directory)
        self.rejected: dict[int, str] = {}
        self._verified: dict[int, bool] = {}  # step -> False: parameters and metadata only

    def steps(self) -> list[int]:
        """Returns the committed steps in ascending order; the steps are not verified."""
        from orbax.checkpoint.path import step as step_lib

        with folder.reaching(self.directory):
            if not self.directory.exists():
                return []
            return sorted(
                found.step for found in step_lib.standard_name_format().find_all(self.directory)
            )

    def path(self, step: int) -> epath.Path:
        """Returns the folder of a step."""
        return self.directory / str(step)

    def has_training(self, step: int) -> bool:
        """Returns whether a step contains optimizer state and counters."""
        with folder.reaching(self.directory):
            return (self.path(step) / TRAINING).exists()

    def choose(
        self,
        step: int | None = None,
        *,
        accept_unverified: bool = False,
        params_only: bool = False,
    ) -> RestoreReport:
        """Returns the newest valid step, or `step` if it is valid; chosen by process 0.

        A `CheckpointReader` verifies the files of each step once, against the digest. An invalid
        step is reported on stderr, and the next older step is tried.

        Args:
          step: the only step to consider; None for all, newest first.
          accept_unverified: accept a step without a digest. A step has no digest if the run was
            killed after the commit and before the digest was written. A step that does not match
            its digest is never accepted.
          params_only: verify only the files that `restore_params` reads.

        Raises:
          UserError: if no step is valid; the message contains the reason for each step.
        """
        found: dict[str, Any] = {}
        if hosts.is_primary():
            found = self._choose(step, accept_unverified, params_only)
        found = hosts.broadcast_json(found, "checkpoint to use", digest.TIMEOUT_SECONDS)
        skipped = tuple((int(number), str(reason)) for number, reason in found["skipped"])
        unreported = [number for number, _ in skipped if number not in self.rejected]
        self.rejected.update(skipped)
        if found["step"] is None:
            raise UserError(self._none_valid(step, skipped))
        self.rejected.pop(found["step"], None)
        report = RestoreReport(found["step"], found["verified"], skipped)
        if hosts.is_primary() and (unreported or not report.verified):
            print("\n".join(report.lines()), file=sys.stderr, flush=True)
        return report

    def _choose(self, step: int | None, accept_unverified: bool, params_only: bool) -> dict:
        present = self.steps()
        wanted = present[::-1] if step is None else [step]
        skipped: list[tuple[int, str]] = []
        for number in wanted:
            if number not in present:
                skipped.append((number, "there is no such checkpoint"))
                continue
            sealed = digest.has_digest(self.path(number))
            accepted = accept_unverified and not sealed
            reason = None if accepted else self.flaw(number, params_only=params_only)
            if reason is None:
                return {"step": number, "verified": sealed, "skipped": skipped}
            skipped.append((number, reason))
        return {"step": None, "verified": False, "skipped": skipped}

    def flaw(self, step: int, *, params_only: bool = False) -> str | None:
        """Returns why a committed step is invalid; None if its files match the digest."""
        if not digest.has_digest(self.path(step)):
            return f"it has no {digest.NAME}: the run was probably killed just after the save"
        if self._verified.get(step, False) or (params_only and step in self._verified):
            return None
        with folder.reaching(self.directory):
            reason = digest.verify_digest(
                self.path(step), (PARAMS, METADATA) if params_only else None
            )
        if reason is None:
            self._verified[step] = not params_only
        return reason

    def _none_valid(self, step: int | None, skipped: tuple[tuple[int, str], ...]) -> str:
        if not skipped:
            return f"no checkpoints in {self.directory}; is it the checkpoint folder of a run?"
        reasons = "; ".join(f"{number}: {reason}" for number, reason in skipped)
        what = "no valid checkpoint" if step is None else f"no valid checkpoint {step}"
        return f"{what} in {self.directory} ({reasons}); restore a backup or choose another step"

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a step: config, layout, fingerprints, windows consumed.

        Raises:
          UserError: if the metadata cannot be read or has another format version.
        """
        path = self.path(step) / METADATA / METADATA
        try:
            content = json.loads(path.read_text())
            version = content["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: invalid metadata ({error}); copy it from a backup") from None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: checkpoint format {version}, this program reads {FORMAT_VERSION}; "
                "use the version of soda_jax that wrote it"
            )
        return content

    def restore(
        self, abstract_state: Any, step: int | None = None, *, accept_unverified: bool = False
    ) -> tuple[Any, dict[str, Any], RestoreReport]:
        """Reads the training state onto the devices of `abstract_state`.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`s with shardings on any mesh; a leaf without a
            sharding is put on the first local device. The key `params` contains the parameters.
          step, accept_unverified: see `choose`.

        Returns:
          The state in the structure of `abstract_state`, the metadata, and the report of `choose`.

        Raises:
          UserError: if no step is valid, or names, shapes or dtypes differ; the message lists them.
        """
        report = self.choose(step, accept_unverified=accept_unverified)
        metadata = self.metadata(report.step)
        wanted = tree.nested(abstract_state)
        training = {name: value for name, value in wanted.items() if name != PARAMS}
        stored = self._read(report.step, {PARAMS: wanted[PARAMS], TRAINING: training}, dtypes=True)
        state = {PARAMS: stored[PARAMS], **stored[TRAINING]}
        return tree.like(abstract_state, state), metadata, report

    def restore_params(
        self, abstract_params: Any, step: int | None = None, *, accept_unverified: bool = False
    ) -> tuple[Any, dict[str, Any], RestoreReport]:
        """Reads and verifies only the parameters, cast to the dtypes of `abstract_params`.

        Any float dtype is cast to any other without a range check: 1e5 becomes infinite in float16.
        Arguments and result are as for `restore`.

        Raises:
          UserError: as for `restore`, except that two different dtypes are accepted if both are
            floats.
        """
        report = self.choose(step, accept_unverified=accept_unverified, params_only=True)
        metadata = self.metadata(report.step)
        stored = self._read(report.step, {PARAMS: tree.nested(abstract_params)}, dtypes=False)
        return tree.like(abstract_params, stored[PARAMS]), metadata, report

    def _read(
        self, step: int, items: Mapping[str, dict[str, Any]], *, dtypes: bool
    ) -> dict[str, dict[str, Any]]:
        import orbax.checkpoint as ocp

        result: dict[str, dict[str, Any]] = {}
        phrases: list[str] = []
        readable = {name: (self.path(step) / name).exists() for name in items}
        for name, wanted in items.items():
            path = self.path(step) / name
            stored = ocp.PyTreeCheckpointHandler().metadata(path).tree if readable[name] else {}
            phrases += tree.differences(wanted, stored, dtypes=dtypes)
        if phrases:
            more = len(phrases) - _DIFFERENCES_SHOWN
            shown = "; ".join(phrases[:_DIFFERENCES_SHOWN]) + (
                f"; and {more} more" if more > 0 else ""
            )
            raise UserError(
                f"{self.path(step)} does not fit this model and optimizer: {shown}; "
                "use the config that the run was started with"
            )
        for name, wanted in items.items():
            result[name] = self._read_item(self.path(step) / name, wanted) if wanted else {}
        return result

    def _read_item(self, path: epath.Path, wanted: dict[str, Any]) -> dict[str, Any]:
        import jax
        import orbax.checkpoint as ocp

        def restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
            sharding = getattr(leaf, "sharding", None)
            if sharding is None:
                sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            return ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype
            )

        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=jax.tree.map(restore_args, wanted)
                ),
            )
