"""Fetches the metrics of each step from the devices, adds rates, and logs and prints them."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax

from soda_jax.data.dataset import Dataset
from soda_jax.data.loss_vector import loss_vector
from soda_jax.errors import UserError
from soda_jax.model.attention import backend_for
from soda_jax.model.loss import CHUNKS, LEGAL_CHUNKS, chunk_tokens
from soda_jax.parallel import hosts
from soda_jax.schema import RunConfig
from soda_jax.train.hardware import peak_flops
from soda_jax.train.metric_logs import last_start, log_start, open_logs
from soda_jax.train.program import Program

# Other values are computed from these sums; all other metrics are logged under their names.
_SUMS = ("nll", "count", "log_z_squared", "head_rows", "legal_nll", "legal_nll_count")
_SECONDS_BETWEEN_LINES = 1.0


class Telemetry:
    """Logs metrics in process 0 and prints some steps to stderr, at most one per second.

    The metrics of a step are fetched while the next step runs, so that the devices do not wait for
    the host. `submit` stores the device arrays, and `flush` fetches and logs them.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        dataset: Dataset,
        program: Program,
        start_step: int,
        skipped: int,
        check: Callable[[int, Mapping[str, float]], None],
    ):
        """Opens the logs and prints the model size, peak FLOP/s and backends.

        Args:
          config: settings of the run.
          workdir: folder of the run.
          dataset: the training mixture.
          program: the training program.
          start_step: optimizer steps done before this start.
          skipped: number of updates that were skipped in these steps.
          check: called with the step and its metrics; raises UserError to end the run.
        """
        self._config, self._dataset, self._check, self._skipped = config, dataset, check, skipped
        self._logs = open_logs(config, workdir, start_step) if hosts.is_primary() else []
        decoder = program.model.config
        length, mesh = config.data.sequence_length, program.mesh
        self._tokens, self._devices = config.batch_size * length, mesh.size
        self._decoder = decoder
        platform = mesh.devices.flat[0].platform
        dtype = decoder.dtype(platform, mesh.size)
        self._peak, source = peak_flops(list(mesh.devices.flat), dtype)
        attention = backend_for(decoder.attention, platform)
        about = {
            "parameters": decoder.parameters,
            "tokens_per_step": self._tokens,
            "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
            "peak_flops": self._peak,
            "peak_source": source,
            "compute_dtype": dtype,
            "attention": attention,
            "head": decoder.head,
            "loss_chunk": chunk_tokens(
                config.loss_chunk, platform, CHUNKS if decoder.head == "full" else LEGAL_CHUNKS
            ),
        }
        if hosts.is_primary():
            before = last_start(workdir).get("compute_dtype", dtype) if start_step else dtype
            if before != dtype:
                self._print(
                    f"compute dtype: {dtype} on these devices, {before} before; to keep it, set "
                    f"--config.model.compute_dtype={before}"
                )
            log_start(workdir, start_step, about)
        self._print(
            f"{decoder.parameters:,} parameters, {self._tokens:,} tokens per step, peak "
            f"{self._peak / 1e12:.3g} TFLOP/s ({source})"
        )
        self._print(
            f"attention: {attention} on {platform}, {dtype}; loss: chunked linear cross-entropy over "
            f"{'all' if decoder.head == 'full' else 'the legal'} ids, {about['loss_chunk']} tokens per "
            f"chunk; remat: {decoder.remat}"
        )
        self._frame_rate = _frame_rate(dataset)
        self._pending: tuple[int, Mapping[str, jax.Array], float] | None = None
        self._waited, self._printed = 0.0, -_SECONDS_BETWEEN_LINES
        self._first: tuple[int, float] | None = None
        self._before = time.perf_counter()

    def submit(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        """Stores the metrics of a step that may still be running.

        Args:
          step: number of the step.
          metrics: metrics returned by the step, on the devices.
          waited: total seconds spent waiting for the loader so far.
        """
        self._pending = (step, metrics, waited)

    def flush(self) -> None:
        """Waits for the pending step, if there is one, and logs its metrics."""
        if self._pending is not None:
            step = self._pending[0]
            self.write(step, self.read())

    def read(self) -> dict[str, float]:
        """Waits for the pending step and returns its metrics without logging them.

        Raises:
          UserError: if `check` ends the run; the metrics are logged first.
        """
        assert self._pending is not None
        (step, metrics, waited), self._pending = self._pending, None
        values = self._values(jax.device_get(metrics), waited)
        try:
            self._check(step, values)
        except UserError:
            self.write(step, values)
            raise
        return values

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics every `log.every_steps` steps and prints at most one line per second.

        The last step is always logged and printed.
        """
        # Time spent in hooks is not counted in the next step.
        now = self._before = time.perf_counter()
        self._first = self._first or (step, now)
        every, last = self._config.log.every_steps, step == self._config.steps
        if not (last or (every and step % every == 0)):
            return
        for log in self._logs:
            log.write(step, values)
        if last or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            self._print(self._line(step, values, now))

    def _line(self, step: int, values: Mapping[str, float], now: float) -> str:
        total, nan = self._config.steps, float("nan")
        # The first step includes compilation, so the time left is estimated from the second step on.
        first, began = self._first or (step, now)
        left = ""
        if step > first:
            left = f"  {timedelta(seconds=round((total - step) * (now - began) / (step - first)))} left"
        return (
            f"step {step}/{total}  loss {values.get('loss/all', nan):.4f}  "
            f"{values['tokens_per_second'] / self._devices:,.0f} tokens/s/device  "
            f"MFU {values['mfu']:.1%}  data wait {values['data_wait_seconds']:.3f} s{left}"
        )

    def _values(self, metrics: Mapping[str, Any], waited: float) -> dict[str, float]:
        """Returns the metrics of a step as floats, with rates."""
        now = time.perf_counter()
        seconds, self._before = now - self._before, now
        data_wait, self._waited = waited - self._waited, waited
        dataset, count = self._dataset, metrics["count"]
        names, tokens = dataset.layout.class_names, float(count.sum())
        semantic = names.index("semantic") if "semantic" in names else None
        frames = float(count[:, semantic].sum()) if semantic is not None else 0.0  # one per frame
        self._skipped += int(metrics["skipped"])
        values = loss_vector(metrics["nll"], count, names, dataset.source_names)
        values |= {name: float(x) for name, x in metrics.items() if name not in _SUMS}
        z_squared = float(metrics["log_z_squared"]) / max(tokens, 1)
        values |= {
            "z_loss": self._config.optimizer.z_loss * z_squared,
            "skipped": float(self._skipped),
            "seconds": seconds,
            "tokens_per_second": self._tokens / seconds,
            "audio_seconds_per_second": frames / self._frame_rate / seconds,
            "data_wait_seconds": data_wait,
        }
        rows = float(metrics["head_rows"]) / self._tokens if "head_rows" in metrics else None
        values |= self._rates(seconds, rows)
        if "legal_nll" in metrics:
            count = max(float(metrics["legal_nll_count"]), 1.0)
            values["legal_nll"] = float(metrics["legal_nll"]) / count
        # Damaged records (with data.on_corrupt_record=mask) and retried reads are logged only if
        # not 0.
        if damaged := len(dataset.damage()):
            values["masked_records"] = float(damaged)
        if repeated := dataset.storage.remote.repeated_reads:
            values["repeated_reads"] = float(repeated)
        return values

    def _rates(self, seconds: float, head_rows: float | None) -> dict[str, float]:
        """Returns FLOP/s and MFU with the FLOPs of the head that was run.

        With `head_rows`, the mean number of logits per token of a head over legal ids, the result also
        has `mfu_full_head`, which counts the FLOPs of a head over all ids, as other trainers do.
        """
        length = self._config.data.sequence_length

        def per_second(rows: float | None) -> float:
            flops = self._decoder.training_flops_per_token(length, rows)
            return flops * self._tokens / seconds

        run = per_second(head_rows)
        values = {"flops_per_second": run, "mfu": run / self._peak}
        if head_rows is not None:
            values["mfu_full_head"] = per_second(None) / self._peak
        return values

    def _print(self, line: str) -> None:
        if hosts.is_primary():
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After an error in a single-process run, the pending step is still logged. With several
        # processes, fetching it could hang, because another process may have exited.
        if kind is not None and issubclass(kind, Exception) and hosts.is_single_process():
            with suppress(Exception):
                self.flush()
        for log in self._logs:
            log.close(failed=kind is not None)


def _frame_rate(dataset: Dataset) -> float:
    """Returns the frame rate of the mixture's codec in Hz; 1 without audio."""
    rates = [s.manifest.codec["frame_rate"] for s in dataset.sources if s.manifest.codec]
    return float(rates[0]) if rates else 1.0
