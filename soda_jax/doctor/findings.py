"""What a check says, and how the checks of several hosts become one list."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from soda_jax.parallel import hosts

OK, WARNING, FAILURE = "ok", "warning", "FAILS"
PATIENCE = 180.0  # seconds that hosts wait for the slowest at the end of a check


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
      level: `OK`, `WARNING` (the run goes, look at it) or `FAILURE` (it would not).
      what: what was looked at, a word or two.
      told: what was found and, if it is not well, what to do.
      host: number of the process that says it; -1 for all together.
    """

    level: str
    what: str
    told: str
    host: int = -1


def run_check(
    what: str,
    measure: Callable[[], Any],
    judge: Callable[[list[Any], int], Iterable[Finding]] | None = None,
) -> list[Finding]:
    """The findings of all hosts for one check, the same list on each.

    Every host measures, then all tell each other once, then each judges the values of all. A fault while
    measuring is a finding of that host: it must not keep the others waiting.

    Args:
      what: the check.
      measure: gives plain JSON; without `judge` a list of [level, told].
      judge: of the values of all hosts (None for one that failed) and the number of one of them: the
        findings of that one. It talks to nobody.
    """
    value, fault = None, ""
    try:
        value = measure()
    except Exception as error:  # whatever it is, the other hosts are waiting
        fault = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    told = hosts.gather_json([value, fault], f"doctor: {what}", PATIENCE)
    values = [None if fault else value for value, fault in told]
    judge = judge or _as_told(what)
    found: list[Finding] = []
    for number, (_, fault) in enumerate(told):
        judged = [Finding(FAILURE, what, fault)] if fault else judge(values, number)
        found += [dataclasses.replace(one, host=number) for one in judged]
    return _merged(found)


def _as_told(what: str) -> Callable[[list[Any], int], Iterable[Finding]]:
    return lambda values, number: [Finding(level, what, told) for level, told in values[number]]


def _merged(findings: list[Finding]) -> list[Finding]:
    """Equal lines of all hosts as one."""
    by_text: dict[tuple[str, str, str], list[int]] = {}
    for one in findings:
        by_text.setdefault((one.level, one.what, one.told), []).append(one.host)
    merged = []
    for (level, what, told), numbers in by_text.items():
        all_hosts = len(set(numbers)) == hosts.process_count()
        merged += [
            Finding(level, what, told, -1 if all_hosts else number) for number in numbers[:1]
        ]
        if not all_hosts:
            merged += [Finding(level, what, told, number) for number in numbers[1:]]
    return merged


def line(finding: Finding) -> str:
    """The finding as it is printed."""
    where = "" if finding.host < 0 else f" (process {finding.host})"
    return f"{finding.level:8} {finding.what:12} {finding.told}{where}"
