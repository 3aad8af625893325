"""Compiles the four sizes with both heads for three kinds of TPU and writes the table in docs/legal-head.md.

pip install '.[tpu]' && python docs/figures/head_table.py      # half an hour on two cores

A row that the page contains already is not compiled again; `--again` compiles all.
"""

import sys
from pathlib import Path

from plan_table import plan

from soda_jax.hardware import GIB

# Config, mesh, and the topologies with this number of devices.
RUNS = (
    ("soda_135m", {"data": 4, "fsdp": 4}, ("v5p:2x2x4", "v5e:4x4", "tpu7x:2x2x2")),
    ("soda_600m", {"data": 4, "fsdp": 8}, ("v5p:2x4x4", "v5e:4x8", "tpu7x:2x2x4")),
    ("soda_1_7b", {"data": 4, "fsdp": 16}, ("v5p:4x4x4", "v5e:8x8", "tpu7x:2x4x4")),
    ("soda_4b", {"data": 8, "fsdp": 16}, ("v5p:4x4x8", "v5e:8x16", "tpu7x:4x4x4")),
)
PAGE = Path(__file__).parents[1] / "legal-head.md"
HEAD = """| config | topology | head | temporaries, GiB | together, GiB | arithmetic, ms | memory, ms | links, ms | bound, ms | full / legal |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
BEGIN, END = "<!-- table: docs/figures/head_table.py -->", "<!-- end of table -->"


def row(config: str, topology: str, head: str, found: dict) -> str:
    """Returns a row of the table, without the ratio."""
    memory, bounds = found["memory"], found["bounds_seconds"]
    times = [1e3 * bounds.get(name, 0) for name in ("arithmetic", "memory", "links")]
    return (
        f"| `{config}` | {topology} | {head} | {memory['temporaries'] / GIB:.2f} "
        f"| {memory['total'] / GIB:.2f} | "
        + " | ".join(f"{ms:,.0f}" for ms in [*times, max(times)])
    )


def bound(line: str) -> float:
    """Returns the bound of a row in ms."""
    return float(line.split("|")[9].replace(",", ""))


def main() -> None:
    """Compiles the missing rows and rewrites the table after each."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    old, after = rest.split(END, 1)
    known = {} if "--again" in sys.argv else {tuple(x.split("|")[1:4]): x for x in old.split("\n")}
    lines: list[str] = []
    for kind in range(3):
        for config, mesh, topologies in RUNS:
            pair: list[str] = []
            for head in ("full", "legal"):
                name = config if head == "full" else f"{config}_legal"
                start = (f" `{config}` ", f" {topologies[kind]} ", f" {head} ")
                if start in known:
                    line = known[start].rsplit("|", 2)[0].rstrip()
                else:
                    line = row(config, topologies[kind], head, plan(name, topologies[kind], mesh))
                pair.append(line)
                ratio = (
                    f"{bound(pair[0] + ' |') / bound(line + ' |'):.2f}" if head == "legal" else ""
                )
                lines.append(f"{line} | {ratio} |")
                print(lines[-1], file=sys.stderr, flush=True)
                PAGE.write_text("\n".join([before + BEGIN, HEAD, *lines, END + after]), "utf-8")


if __name__ == "__main__":
    main()
