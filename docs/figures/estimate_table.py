"""Compares the estimated memory with that of the compiled step, and writes the table in docs/plan.md.

pip install '.[tpu]' && python docs/figures/estimate_table.py      # about half an hour on two cores
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from soda_jax.hardware import GIB

# Config, topology, overrides. Steps that do not fit are included: the compiler reports their size.
RUNS = (
    ("soda_135m", "v5e:2x2", ()),
    ("soda_135m", "v5p:2x2x4", ("mesh.data=4", "mesh.fsdp=4")),
    ("soda_135m", "v5p:2x2x1", ("model.remat=attention", "gradient_accumulation=4")),
    ("soda_135m", "v5p:2x2x1", ("model.remat=dots", "gradient_accumulation=4")),
    ("soda_135m", "v5p:2x2x1", ("model.remat=none", "gradient_accumulation=4")),
    ("soda_135m", "v5p:2x2x1", ("model.remat=offload",)),
    ("soda_600m", "v5e:4x4", ()),
    ("soda_600m", "v5p:2x4x4", ("mesh.data=4", "mesh.fsdp=8")),
    ("soda_1_7b", "v5p:4x4x4", ("mesh.data=4", "mesh.fsdp=16")),
    ("soda_4b", "v5e:4x8", ()),
    ("soda_4b", "v5e:4x8", ("gradient_accumulation=4",)),
    ("soda_4b", "v6e:4x8", ()),
    ("soda_4b", "v5p:4x4x8", ("mesh.data=8", "mesh.fsdp=16")),
)
HEAD = """| config | topology | overrides | compiled, GiB | estimated, GiB | deviation |
| --- | --- | --- | ---: | ---: | ---: |"""
BEGIN, END = "<!-- estimates: docs/figures/estimate_table.py -->", "<!-- end of estimates -->"


def needed(config: str, topology: str, overrides: tuple[str, ...], *words: str) -> float:
    """Returns the bytes per device that `soda plan --json` reports."""
    command = [sys.executable, "-m", "soda_jax.cli", "plan", f"--config={config}", "--json", *words]
    command += [f"--topology={topology}", *(f"--config.{one}" for one in overrides)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{config} on {topology}: {done.stderr or done.stdout}")
    found = json.loads(done.stdout)
    if "memory" in found:
        return found["memory"]["total"]
    size = re.search(r"needs ([\d.]+) GiB", found["why"])
    return float(size[1]) * GIB if size else sys.exit(found["why"])


def row(
    config: str, topology: str, overrides: tuple[str, ...], compiled: float, estimated: float
) -> str:
    """Returns a row of the table."""
    changed = ", ".join(f"`{one}`" for one in overrides)
    return (
        f"| `{config}` | {topology} | {changed} | {compiled / GIB:.2f} | {estimated / GIB:.2f} "
        f"| {100 * (estimated / compiled - 1):+.0f}% |"
    )


def main() -> None:
    """Compiles and estimates every run, and rewrites the table."""
    lines = [HEAD]
    for run in RUNS:
        lines.append(row(*run, needed(*run), needed(*run, "--estimate")))
        print(lines[-1], file=sys.stderr, flush=True)
    page = Path(__file__).parents[1] / "plan.md"
    before, rest = page.read_text("utf-8").split(BEGIN)
    page.write_text("\n".join([before + BEGIN, *lines, END + rest.split(END)[1]]), "utf-8")


if __name__ == "__main__":
    main()
