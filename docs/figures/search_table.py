"""Searches for the best settings of the 135M on four v5p and writes the table in docs/plan.md.

pip install '.[tpu]' && python docs/figures/search_table.py      # about twenty minutes on two busy cores
"""

import subprocess
import sys
from pathlib import Path

COMMAND = ("plan", "--config=soda_135m", "--topology=v5p:2x2x1", "--search", "--candidates=6")
BEGIN, END = "<!-- search: docs/figures/search_table.py -->", "<!-- end of search -->"


def main() -> None:
    """Runs the search, and rewrites the table and the list of candidates that do not fit."""
    done = subprocess.run(
        [sys.executable, "-m", "soda_jax.cli", *COMMAND], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
    lines = done.stdout.strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    others = [f"- {line}" for line in lines if line.startswith("does not fit: ")]
    page = Path(__file__).parents[1] / "plan.md"
    before, rest = page.read_text("utf-8").split(BEGIN)
    text = "\n".join([*table, "", *others]) if others else "\n".join(table)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
