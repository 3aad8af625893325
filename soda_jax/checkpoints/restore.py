"""Choosing and reading checkpoints; safe beside a run that is writing them."""

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
# Sub-folders of a step. Parameters stand apart, so that generation reads and verifies only them.
PARAMS, TRAINING, METADATA = "params", "training", "metadata"
_DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class RestoreReport:
    """The step that was chosen, and the newer ones that were not, each with its reason."""

    step: int
    verified: bool
    skipped: tuple[tuple[int, str], ...] = ()

    def lines(self) -> list[str]:
        """What a user should know; empty if all is well."""
        told = [f"checkpoint {step} skipped: {reason}" for step, reason in self.skipped]
        if not self.verified:
            told.append(f"checkpoint {self.step} is used unverified, as asked: it has no digest")
        return [*told, f"going on from checkpoint {self.step}"] if told else []


class CheckpointReader:
    """Reads the checkpoints below one folder; every process of a run calls it alike.

    Attributes:
      rejected: step -> reason, of the steps found not to be usable so far.
    """

    def __init__(self, directory: str | PathLike[str]):
        """Names the folder that holds the step folders; it need not exist.

        Args:
          directory: a path, e.g. WORKDIR/checkpoints, or gs://…

        Raises:
          UserError: for another kind of URL, and where a package for gs:// is missing.
        """
        self.directory = folder.opened(directory)
        self.rejected: dict[int, str] = {}
        self._verified: dict[int, bool] = {}  # step -> whole step (else parameters only)

    def steps(self) -> list[int]:
        """Committed steps, ascending, not verified; saves under way or killed are not among them."""
        from orbax.checkpoint.path import step as step_lib

        with folder.reaching(self.directory):
            if not self.directory.exists():
                return []
            return sorted(
                found.step for found in step_lib.standard_name_format().find_all(self.directory)
            )

    def path(self, step: int) -> epath.Path:
        """The folder of one step."""
        return self.directory / str(step)

    def has_training(self, step: int) -> bool:
        """Whether a step has an optimizer state and counters, and not the parameters alone."""
        with folder.reaching(self.directory):
            return (self.path(step) / TRAINING).exists()

    def choose(
        self,
        step: int | None = None,
        *,
        accept_unverified: bool = False,
        params_only: bool = False,
    ) -> RestoreReport:
        """The newest valid step (or `step` itself, if it is valid), chosen by process 0 for all.

        Every file is checked against the digest; a step that fails is told on stderr and the next
        older one is tried. What was verified once is not read again by this object.

        Args:
          step: the only step to consider; None considers all, newest first.
          accept_unverified: also take a step with no digest, as a run leaves it that is killed
            between commit and digest. A step whose digest disagrees is never taken.
          params_only: verify only what `restore_params` reads.

        Raises:
          UserError: if there is no valid step; it says why each one failed.
        """
        found: dict[str, Any] = {}
        if hosts.is_primary():
            found = self._choose(step, accept_unverified, params_only)
        found = hosts.broadcast_json(found, "checkpoint to use", digest.TIMEOUT_SECONDS)
        skipped = tuple((int(number), str(reason)) for number, reason in found["skipped"])
        news = [number for number, _ in skipped if number not in self.rejected]
        self.rejected.update(skipped)
        if found["step"] is None:
            raise UserError(self._none_valid(step, skipped))
        self.rejected.pop(found["step"], None)
        report = RestoreReport(found["step"], found["verified"], skipped)
        if hosts.is_primary() and (news or not report.verified):
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
            trusted_as_is = accept_unverified and not sealed
            reason = None if trusted_as_is else self.flaw(number, params_only=params_only)
            if reason is None:
                return {"step": number, "verified": sealed, "skipped": skipped}
            skipped.append((number, reason))
        return {"step": None, "verified": False, "skipped": skipped}

    def flaw(self, step: int, *, params_only: bool = False) -> str | None:
        """Why a committed step cannot be trusted; None if every file agrees with its digest."""
        if not digest.has_digest(self.path(step)):
            return f"it has no {digest.NAME}: the run was killed just after the save"
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
        what = "no valid checkpoint" if step is None else "checkpoint cannot be used"
        return f"{what} in {self.directory} ({reasons}); restore a copy or name another step"

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with a step: config, layout, fingerprints, windows consumed.

        Raises:
          UserError: if it cannot be read or its format version is not ours.
        """
        path = self.path(step) / METADATA / METADATA
        try:
            content = json.loads(path.read_text())
            version = content["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the metadata of a checkpoint ({error})") from None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: checkpoint format {version}, this program reads {FORMAT_VERSION}; "
                "use the version of soda_jax that wrote it"
            )
        return content

    def restore(
        self, abstract_state: Any, step: int | None = None, *, accept_unverified: bool = False
    ) -> tuple[Any, dict[str, Any], RestoreReport]:
        """Reads the whole training state onto the devices that `abstract_state` names.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`s with shardings, on any mesh; one without
            a sharding goes to the first local device. Its key `params` holds the parameters.
          step: as in `choose`, likewise `accept_unverified`.

        Returns:
          (state in the structure of `abstract_state`, metadata, what was chosen and skipped)

        Raises:
          UserError: if no step is valid, or names, shapes or dtypes differ; it names them.
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
        """Reads and verifies the parameters alone, cast to the dtypes of `abstract_params`.

        Floats are cast to floats only, with no check of their range: 1e5 is infinite as float16.
        Arguments, result and errors are otherwise those of `restore`.

        Raises:
          UserError: also for a dtype that is not a float, such as int8, where the checkpoint has one.
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

        def place(leaf: Any) -> ocp.ArrayRestoreArgs:
            sharding = getattr(leaf, "sharding", None)
            if sharding is None:
                sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            return ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype
            )

        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(
                path,
                args=ocp.args.PyTreeRestore(item=wanted, restore_args=jax.tree.map(place, wanted)),
            )
