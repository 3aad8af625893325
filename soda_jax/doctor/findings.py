"""Runs a check of `soda doctor` on all hosts, and gathers and merges the findings."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from soda_jax.parallel import hosts

OK, WARNING, FAILURE = "ok", "warning", "FAILS"
TIMEOUT = 180.0  # seconds that hosts wait for the slowest host at the end of a check


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      level: `OK`, `WARNING` (the run works, but needs attention) or `FAILURE` (the run would fail).
      check: name of the check.
      message: the result and, if the level is not `OK`, the fix.
      process: index of the process that reports it; -1 for all processes.
    """

    level: str
    check: str
    message: str
    process: int = -1

    def __str__(self) -> str:
        where = "" if self.process < 0 else f" (process {self.process})"
        return f"{self.level:8} {self.check:12} {self.message}{where}"


def run_check(
    check: str,
    measure: Callable[[], Any],
    judge: Callable[[list[Any], int], Iterable[Finding]] | None = None,
) -> list[Finding]:
    """Runs one check in all processes and returns their findings, the same list in every process.

    Every process measures, the results are gathered once, and every process judges all results. An
    exception in `measure` becomes a finding, so that the other processes do not time out.

    Args:
      check: name of the check.
      measure: returns JSON-able values; without `judge`, a list of [level, message].
      judge: receives the values of all processes (None for a process in which `measure` failed) and
        the index of one process, and returns the findings of this process. It must not use
        collectives.
    """
    value, error = None, ""
    try:
        value = measure()
    except Exception as caught:  # any type, because the other processes are waiting
        error = (str(caught).strip().splitlines() or [""])[0] or type(caught).__name__
    results = hosts.gather_json([value, error], f"doctor: {check}", TIMEOUT)
    values: list[Any] = [None if error else value for value, error in results]
    found: list[Finding] = []
    for index, (_, error) in enumerate(results):
        if error:
            judged: Iterable[Finding] = [Finding(FAILURE, check, error)]
        elif judge is None:
            judged = [Finding(level, check, message) for level, message in values[index]]
        else:
            judged = judge(values, index)
        found += [dataclasses.replace(finding, process=index) for finding in judged]
    return _merged(found)


def _merged(findings: list[Finding]) -> list[Finding]:
    """Merges equal findings of all processes into one finding with process −1."""
    by_text: dict[Finding, list[int]] = {}
    for finding in findings:
        key = dataclasses.replace(finding, process=-1)
        by_text.setdefault(key, []).append(finding.process)
    merged: list[Finding] = []
    for finding, processes in by_text.items():
        if len(set(processes)) == jax.process_count():
            merged.append(finding)
        else:
            merged += [dataclasses.replace(finding, process=index) for index in processes]
    return merged
