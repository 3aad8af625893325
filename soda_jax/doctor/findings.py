"""Findings of `soda doctor`, gathered from all hosts and merged."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from soda_jax.parallel import hosts

OK, WARNING, FAILURE = "ok", "warning", "FAILS"
TIMEOUT = 180.0  # seconds that hosts wait for the slowest one at the end of a check


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      level: `OK`, `WARNING` (the run works, but needs attention) or `FAILURE` (the run would fail).
      check: name of the check.
      message: the result and, if it is not ok, the fix.
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
    """Runs one check on all hosts and returns their findings, the same list in every process.

    Every process measures, the results are gathered once, and every process judges all of them. An
    exception in `measure` becomes a finding of that process, because the other processes are waiting.

    Args:
      check: name of the check.
      measure: returns plain JSON; without `judge` a list of [level, message].
      judge: receives the values of all processes (None for one that failed) and the index of one of
        them, and returns the findings of that process. It must not use collectives.
    """
    value, error = None, ""
    try:
        value = measure()
    except Exception as caught:  # any type: the other processes are waiting
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
    """Replaces a finding that all processes report by one without a process."""
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
