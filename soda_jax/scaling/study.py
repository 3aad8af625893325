"""The folder of a study: its runs, their attempts, and which process trains which run.

    STUDY/study.json          name of the experiment, and config and data of each run
    STUDY/runs/NAME/attempts.jsonl
    STUDY/runs/NAME/seed_0/   workdir of the run; a run that diverged is repeated in seed_1
    STUDY/runs/NAME/result.json
    STUDY/results.csv, STUDY/results.parquet

A process holds a lock on a run while it trains it. The operating system releases the lock when the
process ends in any way, so several processes on one file system can work on a study.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import check_output_folder, is_url, write_json
from soda_jax.schema import RunConfig, to_dict

# `Study.workers` holds each lock for a moment, which must not look like another process at work.
_TRIES, _SECONDS_BETWEEN_TRIES = 3, 0.05
DONE, FAILED, OPEN = "done", "failed", "open"
_STARTED, _CRASHED, _DIVERGED, _PREEMPTED = "started", "crashed", "diverged", "preempted"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a study.

    Attributes:
      name: name, unique in the study.
      config: all settings of the run, as for `soda train`.
      cost: cost of the run in any unit that is proportional to its duration, such as FLOPs.
      columns: columns of the table that are known before the run.
      vocabulary: number of ids that the data must have; 0 accepts any.
    """

    name: str
    config: RunConfig
    cost: float
    columns: Mapping[str, Any]
    vocabulary: int = 0


@dataclasses.dataclass(frozen=True)
class Attempts:
    """What happened to a run so far.

    Attributes:
      crashed: attempts that ended with an error, or were killed without progress since the start.
      diverged: attempts whose loss diverged, each with another seed.
      error: message of the last error, "" if there was none.
      started, ended: times of the first start and of the last event, ISO 8601 in UTC; "" without.
    """

    crashed: int = 0
    diverged: int = 0
    error: str = ""
    started: str = ""
    ended: str = ""

    @property
    def failures(self) -> int:
        """Number of attempts that count against the limit."""
        return self.crashed + self.diverged


class RunFolder:
    """Files of one run of a study.

    Attributes:
      folder: folder of the run.
      job: the run.
      generations: generation of the data set to read, by source name; others are those of the config.
    """

    def __init__(self, folder: Path, job: Job):
        """Stores the folder of the run, which need not exist."""
        self.folder, self.job = folder, job
        self.generations: Mapping[str, int] = {}
        self._log = folder / "attempts.jsonl"

    def next_seed(self) -> int:
        """Returns the seed of the next attempt, which is another one after a divergence."""
        return self.job.config.seed + self.attempts().diverged

    def attempt(self, seed: int) -> tuple[RunConfig, Path]:
        """Returns the config and the workdir of an attempt.

        A folder of checkpoints outside of the workdir has a subfolder for each attempt: a run must not
        resume from the checkpoint of another one.
        """
        config, checkpoint = self.job.config, self.job.config.checkpoint
        if is_url(checkpoint.directory) or Path(checkpoint.directory).is_absolute():
            directory = f"{checkpoint.directory.rstrip('/')}/{self.job.name}/seed_{seed}"
            checkpoint = dataclasses.replace(checkpoint, directory=directory)
        sources = {
            name: dataclasses.replace(
                source, generation=self.generations.get(name, source.generation)
            )
            for name, source in config.data.sources.items()
        }
        data = dataclasses.replace(config.data, sources=sources)
        config = dataclasses.replace(config, seed=seed, checkpoint=checkpoint, data=data)
        return config, self.folder / f"seed_{seed}"

    def result(self) -> dict[str, Any] | None:
        """Returns the row of the finished run, None if it is not finished."""
        path = self.folder / "result.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def finish(self, row: Mapping[str, Any]) -> None:
        """Stores the row of the finished run."""
        write_json(self.folder / "result.json", row)

    def status(self, limit: int) -> str:
        """Returns `DONE`, `FAILED` after `limit` failed attempts, or `OPEN`."""
        if self.result() is not None:
            return DONE
        return FAILED if self.attempts().failures >= limit else OPEN

    def attempts(self) -> Attempts:
        """Returns what happened so far.

        An attempt without an end was killed. It counts as crashed if the next one starts from the same
        step: a run that crashes the whole process must not be repeated forever, and one that is killed at
        the time limit of a cluster must not fail.
        """
        crashed = diverged = 0
        error, before = "", None
        events = self._events()
        for event in events:
            kind = event["event"]
            if kind == _STARTED and before == event["step"]:
                crashed, error = crashed + 1, error or "the process was killed"
            before = event["step"] if kind == _STARTED else None
            crashed += kind == _CRASHED
            diverged += kind == _DIVERGED
            error = event.get("error", error)
        times = [event["time"] for event in events] or [""]
        return Attempts(crashed, diverged, error, times[0], times[-1])

    def start(self, step: int) -> None:
        """Notes the start of an attempt from a checkpoint at `step`, 0 without one."""
        self._note(_STARTED, step=step)

    def crashed(self, error: str) -> None:
        """Notes that the attempt ended with an error."""
        self._note(_CRASHED, error=error)

    def diverged(self, error: str) -> None:
        """Notes that the loss diverged; the next attempt starts from the beginning with another seed."""
        self._note(_DIVERGED, error=error)

    def preempted(self) -> None:
        """Notes that the attempt was stopped by SIGTERM or by the user."""
        self._note(_PREEMPTED)

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Holds the lock of the run; yields False if another process holds it."""
        with _lock(self.folder / ".lock", wait=False) as held:
            yield held

    def _events(self) -> list[dict[str, Any]]:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        events = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # a killed process left half a line
                events.append(json.loads(line))
        return events

    def _note(self, event: str, **values: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "time": now, **values}) + "\n"
        with self._log.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # Appended to half a line of a killed process, the event would be lost too.
                line = line if file.read() == b"\n" else "\n" + line
            file.write(line.encode())


class Study:
    """A study in a folder.

    Attributes:
      folder: the folder.
      experiment: name of the study, the name of its folder when it was begun.
      runs: the runs in the order of the plan.
    """

    def __init__(self, folder: str | Path, jobs: Sequence[Job]):
        """Opens a study; nothing is written.

        Raises:
          UserError: if two jobs have the same name, the folder is a URL or cannot be written, or it contains a study
            whose runs are not among the jobs or have other configs. Jobs may be added to a study.
        """
        self.folder = Path(folder)
        if is_url(folder):
            raise UserError(
                f"{folder}: a study must be in a local folder; store the checkpoints elsewhere with "
                f"--config.checkpoint.directory={folder}"
            )
        check_output_folder(self.folder, f"--workdir={folder}")
        self.runs = [RunFolder(self.folder / "runs" / job.name, job) for job in jobs]
        names = [job.name for job in jobs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"the plan has {repeated[0]} twice; remove one of the rows")
        # As JSON, which turns tuples into lists.
        self._configs = json.loads(json.dumps({job.name: to_dict(job.config) for job in jobs}))
        self.experiment = self.folder.resolve().name
        self._file = self.folder / "study.json"
        self._check_same()

    def _stored(self) -> dict[str, Any] | None:
        """Returns the content of study.json, None without the file."""
        try:
            stored = json.loads(self._file.read_bytes())
            stored["experiment"], stored["configs"].items()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._file} is not the file of a study ({type(error).__name__}: {error}); restore it, "
                "or give another --workdir"
            ) from None
        return stored

    def _check_same(self) -> None:
        stored = self._stored()
        if stored is None:
            return
        self.experiment, before = stored["experiment"], stored["configs"]
        for name, config in before.items():
            if name not in self._configs:
                raise UserError(
                    f"{self.folder} contains a study with the run {name}, which the plan lacks; give "
                    "another --workdir"
                )
            if differing := _differences(config, self._configs[name]):
                raise UserError(
                    f"{self.folder} contains a study whose run {name} has {differing[0]}; give another "
                    "--workdir"
                )

    def generations(self) -> dict[str, int]:
        """Returns the generation of each data source, by name, that the runs in study.json read.

        Runs that begin after data was appended read the same generations as those before.
        """
        stored = self._stored() or {}
        found: dict[str, int] = {}
        for data in stored.get("data", {}).values():
            found |= data["generations"]
        return found

    def save(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the name, the configs and the data.

        Args:
          data: `digest` and `generations` of the data of each run.

        Raises:
          UserError: if another process has written those of another study since this one was opened, or
            the data of a run has another digest than before.
        """
        with self.table_lock():
            self._check_same()
            before = (self._stored() or {}).get("data", {})
            for name, values in data.items():
                found, expected = values["digest"], before.get(name, values)["digest"]
                if found != expected:
                    raise UserError(
                        f"{self.folder}: the data of the run {name} is not that with which the study began "
                        f"(digest {found[:12]}, expected {expected[:12]}); restore it, or give another "
                        "--workdir"
                    )
            content = {"experiment": self.experiment, "configs": self._configs, "data": dict(data)}
            write_json(self._file, content)

    def is_whole(self) -> bool:
        """Returns whether no process has added runs to the study since it was opened."""
        stored = self._stored()
        return stored is None or stored["configs"].keys() <= self._configs.keys()

    def workers(self) -> int:
        """Returns the number of runs that processes, this one included, hold now."""
        count = 0
        for run in self.runs:
            if run.result() is None and run.folder.exists():
                with run.claim() as held:
                    count += not held
        return count

    @contextlib.contextmanager
    def table_lock(self) -> Iterator[None]:
        """Waits until no other process writes the table of results or study.json."""
        with _lock(self.folder / ".results.lock", wait=True):
            yield


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock on a file; yields False if another process holds it and `wait` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if not left:
                    yield False
                    return
                time.sleep(_SECONDS_BETWEEN_TRIES)
            except OSError as error:
                raise UserError(
                    f"{path} cannot be locked ({error.strerror}); put the study on a file system with "
                    "locks"
                ) from None
        yield True


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Returns `NAME = OLD instead of NEW` for each value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys((*before, *now))
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if before == now else [f"{name} = {before!r} instead of {now!r}"]
