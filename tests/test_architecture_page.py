"""docs/architecture.md names existing files and functions, and stays short."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$",
    (ROOT / "docs" / "architecture.md").read_text("utf-8"),
    re.MULTILINE,
)


def functions(file):
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_step_names_a_function_that_exists():
    missing = [row for row in ROWS if row[1] not in functions(row[0])]
    assert len(ROWS) > 40 and not missing


def test_an_utterance_passes_at_most_seventy_functions():
    assert len(set(ROWS)) <= 70
