"""Saves checkpoints in the background, writes a digest for each and removes old checkpoints."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Self

from soda_jax.checkpoints import chunks, digest, folder, tree
from soda_jax.checkpoints.restore import (
    FORMAT_VERSION,
    METADATA,
    PARAMS,
    TRAINING,
    CheckpointReader,
    RestoreReport,
)
from soda_jax.errors import UserError
from soda_jax.parallel import hosts

# Interval in steps at which process 0 of a multi-process run checks its clock and broadcasts the
# result.
_CHECK_CLOCK_EVERY_STEPS = 10
# Arrays that are replicated on several devices are written by all of them, one slice each, if the
# slices have at least this size. Each slice of a small array costs more than it saves: it is one
# more operation on a device, compiled at the first save.
_MIN_SLICE_BYTES = 1 << 20


class Checkpointer:
    """Saves and restores the state of one run; every process of the run must make the same calls.

    A save has three stages. The arrays are copied from the devices, and `maybe_save` returns. Orbax
    writes the folder of the step and commits it (an atomic rename, or a commit marker in an object
    store). Writing the digest seals the step. An older step is removed only after a newer one is
    sealed.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        every_steps: int | None,
        every_minutes: float | None = None,
        keep: int = 3,
        keep_period: int | None = None,
        reader: CheckpointReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens or creates the folder and removes the files of interrupted saves.

        Args:
          directory: parent of the step folders. Only one run may write to it.
          every_steps: save at multiples of this number of steps; None or 0 disables it.
          every_minutes: save this number of minutes after the last save or the start; None or 0
            disables it.
          keep: number of newest steps with a digest to keep, at least 1.
          keep_period: steps with a digest that are multiples of `keep_period` are never removed.
          reader: reader of the same folder, which caches verified steps; by default a new one.
          clock: function that returns seconds; replaced in tests.

        Raises:
          UserError: if `keep` is below 1 or the folder cannot be created.
        """
        if keep < 1:
            raise UserError(f"keep={keep} would leave no checkpoint; keep at least 1")
        self.reader = reader or CheckpointReader(directory)
        self.directory = self.reader.directory
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._keep, self._keep_period = keep, keep_period
        self._clock, self._last_time = clock, clock()
        self._last_step: int | None = None
        self._checked_newer = False
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._closed = False
        try:
            with folder.reaching(self.directory):
                self._manager = _open(self.directory)
        except OSError as error:
            raise UserError(
                f"{self.directory}: cannot be opened ({error}); use another folder"
            ) from None

    def due(self, step: int) -> bool:
        """Returns whether `maybe_save` saves after `step` optimizer steps without `force`."""
        if step == self._last_step or step <= 0:
            return False
        if self._every_steps and step % self._every_steps == 0:
            return True
        if not self._every_minutes or (
            not hosts.is_single_process() and step % _CHECK_CLOCK_EVERY_STEPS
        ):
            return False
        passed = self._clock() - self._last_time >= 60 * self._every_minutes
        return hosts.broadcast_json(passed, "save by minutes")

    def maybe_save(
        self,
        step: int,
        state: Any,
        metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        *,
        force: bool = False,
    ) -> bool:
        """Starts a save if one is due; returns when `state` may be changed or donated.

        Args:
          step: optimizer steps done.
          state: tree of jax arrays. The parameters (key `params`) are stored separately from
            the rest (optimizer state, counters).
          metadata: a JSON object, or a function that returns one; called only if a save starts.
          force: save now, unless this step was just saved or restored.

        Returns:
          True if a save was started.

        Raises:
          UserError: if an earlier save failed in the background, this save cannot start, or, at the
            first save, the folder already contains `step` or a later step that `reader` did not
            reject.
        """
        self.raise_failure()
        if step == self._last_step or not (force or self.due(step)):
            return False
        self.wait()
        self._check_not_newer(step)
        import orbax.checkpoint as ocp

        whole = tree.nested(state)
        params = whole.pop(PARAMS)
        # Only the parameters are read in parts. Chunking needs a copy, so the rest is not chunked.
        items: dict[str, Any] = {PARAMS: ocp.args.PyTreeSave(params, chunks.save_arguments(params))}
        if whole:
            items[TRAINING] = ocp.args.PyTreeSave(whole)
        content = metadata() if callable(metadata) else metadata
        items[METADATA] = ocp.args.JsonSave({**content, "format_version": FORMAT_VERSION})
        try:
            # Only an invalid step can exist here; for a valid one `_check_not_newer` raises.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            self._failure = _failure_line(step, error)
        if self._failure is None:
            self._thread = threading.Thread(target=self._finish, args=(step,), name="seal")
            self._thread.start()
        elif hosts.is_single_process():
            self._raise_failure()
        self._last_step, self._last_time = step, self._clock()
        return True

    def raise_failure(self) -> None:
        """Raises the error of a background save in a single-process run.

        In a multi-process run, the next save or `wait` raises the error in all processes.
        """
        if hosts.is_single_process():
            self._raise_failure()

    def _check_not_newer(self, step: int) -> None:
        """Raises UserError before the first save if `step` or a later step is already saved."""
        if self._checked_newer:
            return
        ahead = [n for n in self.reader.steps() if n >= step and n not in self.reader.rejected]
        newest = hosts.broadcast_json(ahead[-1] if ahead else None, "first save")
        if newest is not None:
            raise UserError(
                f"{self.directory} contains checkpoint {newest}, but this run is at step {step}; "
                "resume from the newest one, move the newer ones away, or use another folder"
            )
        self._checked_newer = True

    def _finish(self, step: int) -> None:
        """Waits for the commit, seals the step and removes older ones; runs in the background."""
        try:
            self._manager.wait_until_finished()
            self.reader.rejected.pop(step, None)
            if hosts.is_primary():
                digest.write_digest(self.reader.path(step))
                self._remove_old()
        except Exception as error:  # raised later in the main thread, see `raise_failure`
            self._failure = _failure_line(step, error)

    def _remove_old(self) -> None:
        steps = self.reader.steps()
        usable = [step for step in steps if step not in self.reader.rejected]
        sealed = [step for step in usable if digest.has_digest(self.reader.path(step))]
        for step in [n for n in steps if n < sealed[-self._keep :][0]]:
            if self._keep_period and step % self._keep_period == 0 and step in sealed:
                continue
            # The digest is removed first, so that a partly removed step is never valid.
            (self.reader.path(step) / digest.NAME).unlink(missing_ok=True)
            self.reader.path(step).rmtree()

    def wait(self) -> None:
        """Waits until the last save is committed and sealed.

        Raises:
          UserError: if the save failed in any process; older checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if hosts.any_process(self._failure is not None, "last save", digest.TIMEOUT_SECONDS):
            self._failure = self._failure or "saving a checkpoint failed in another process"
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        failure, self._failure = self._failure, None
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()  # Orbax raises the error once per thread
        self._remove_failed_saves()
        raise UserError(
            f"{self.directory}: {failure}; is the disk full or not writable? "
            "Older checkpoints are untouched"
        )

    def close(self) -> None:
        """Calls `wait` and releases all resources; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._manager.close()
            self._remove_failed_saves()

    def _remove_failed_saves(self) -> None:
        from orbax.checkpoint.path import step as step_lib

        if hosts.is_primary():
            for path in self.directory.glob(f"*{step_lib.TMP_DIR_SUFFIX}*"):
                # If Orbax is still writing to the folder, rmtree fails; the next call repeats it.
                with contextlib.suppress(OSError):
                    path.rmtree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore(
        self, abstract_state: Any, step: int | None = None, *, accept_unverified: bool = False
    ) -> tuple[Any, dict[str, Any], RestoreReport]:
        """Calls `CheckpointReader.restore`; the restored step is not saved again."""
        restored = self.reader.restore(abstract_state, step, accept_unverified=accept_unverified)
        self._last_step = restored[2].step
        return restored


class _DropOrbaxErrors(logging.Filter):
    """Drops the tracebacks that Orbax logs; `Checkpointer` raises these errors as one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


_DROP_ORBAX_ERRORS = _DropOrbaxErrors()


def _open(directory: Any) -> Any:
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_DROP_ORBAX_ERRORS)
    # Compression is off: it hardly reduces the size of weights and moments, and makes saves and
    # restores a few times slower on a small machine (benchmarks/checkpoint.py measures both).
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
    types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for item in (PARAMS, TRAINING):
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=types)
        registry.add(item, ocp.args.PyTreeSave, handler)
    registry.add(METADATA, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None, cleanup_tmp_directories=True, save_root_metadata=False
    )
    manager = ocp.CheckpointManager(directory, options=options, handler_registry=registry)
    # Orbax calls jax's preemption sync point with the step number of a save, when the save starts
    # and again when it has finished. These calls overwrite the call count of `StopRequest`, and the
    # processes would stop at different steps
    # (findings/orbax_finished_save_resets_preemption_step.sh).
    manager.reached_preemption = lambda step: False
    return manager


def _failure_line(step: int, error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if len(reason) > 240:  # the operation is at the start, the reason at the end
        reason = f"{reason[:60]} … {reason[-160:]}"
    return f"saving step {step} failed: {reason}"
