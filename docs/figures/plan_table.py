"""Compiles the four sizes for the paper's TPUs and writes the table in docs/plan.md.

pip install '.[tpu]' && python docs/figures/plan_table.py      # about ten minutes on two cores
"""

import json
import subprocess
import sys
from pathlib import Path

from soda_jax.hardware import GIB

# Config, the name of the slice in the paper (it counts cores), topology, meshes to compare.
RUNS = (
    ("soda_135m", "v5p-32", "v5p:2x2x4", ({"fsdp": 16}, {"data": 4, "fsdp": 4})),
    ("soda_600m", "v5p-64", "v5p:2x4x4", ({"fsdp": 32}, {"data": 4, "fsdp": 8})),
    ("soda_1_7b", "v5p-128", "v5p:4x4x4", ({"fsdp": 64}, {"data": 4, "fsdp": 16})),
    ("soda_4b", "v5p-256", "v5p:4x4x8", ({"fsdp": 128}, {"data": 8, "fsdp": 16})),
)
HEAD = """| config | slice in the paper | mesh | remat | state | temporaries | together, of 95.74 GiB | sent, GiB | arithmetic, ms | memory, ms | links, ms | MFU at most | days at least |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
BEGIN, END = "<!-- table: docs/figures/plan_table.py -->", "<!-- end of table -->"


def plan(config: str, topology: str, mesh: dict[str, int]) -> dict:
    """Returns the output of `soda plan --json`."""
    sizes = {"data": 1, "fsdp": 1, **mesh}
    words = [f"--config.mesh.{name}={size}" for name, size in sizes.items()]
    command = [sys.executable, "-m", "soda_jax.cli", "plan", f"--config={config}"]
    command += [f"--topology={topology}", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{config} on {topology}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def row(name: str, found: dict) -> str:
    """Returns a row of the table."""
    memory, bounds = found["memory"], found["bounds_seconds"]
    sent = sum(one["bytes"] for one in found["collectives"])
    state = memory["parameters"] + memory["optimizer"]
    mesh = " × ".join(f"{axis}={size}" for axis, size in found["mesh"].items() if size > 1)
    return (
        f"| `{found['config']}` | {name} | {mesh} | {found['settings']['remat']} | {state / GIB:.2f} "
        f"| {memory['temporaries'] / GIB:.2f} | {memory['total'] / GIB:.2f} | {sent / GIB:.1f} "
        f"| {1e3 * bounds['arithmetic']:,.0f} | {1e3 * bounds['memory']:,.0f} "
        f"| {1e3 * bounds.get('links', 0):,.0f} | {100 * found['mfu_bound']:.1f}% | {found['days']:.1f} |"
    )


def main() -> None:
    """Compiles every run and rewrites the table."""
    page = Path(__file__).parents[1] / "plan.md"
    lines = [HEAD]
    for config, name, topology, meshes in RUNS:
        for mesh in meshes:
            found = plan(config, topology, mesh)
            lines.append(row(name, {**found, "config": config}))
            print(lines[-1], file=sys.stderr, flush=True)
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text("\n".join([before + BEGIN, *lines, END + after]), "utf-8")


if __name__ == "__main__":
    main()
