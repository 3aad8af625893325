"""What a check says, and how the checks of several hosts become one list."""

import dataclasses
from collections.abc import Callable, Iterable

from soda_jax.errors import UserError
from soda_jax.parallel import hosts

OK, WARNING, FAILURE = "ok", "warning", "FAILS"


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


def run_check(what: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of all hosts for one check, the same list on each.

    A fault of one host is a finding, not the end: the others would wait for it.
    """
    number = hosts.process_index()
    try:
        found = list(check())
    except (UserError, OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found = [Finding(FAILURE, what, lines[0])]
    mine = [dataclasses.replace(one, host=number if one.host < 0 else one.host) for one in found]
    everyone = hosts.gather_json([dataclasses.astuple(one) for one in mine], f"doctor: {what}")
    return _merged([Finding(*row) for rows in everyone for row in rows])


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
