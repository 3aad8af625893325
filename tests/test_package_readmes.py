"""Every package has a short README that names existing files and symbols."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "configs",
    "tokenize_pipeline",
    *sorted(
        str(file.parent.relative_to(ROOT))
        for file in (ROOT / "soda_jax").glob("*/__init__.py")
        if file.parent.name != "commands"
    ),
]


def readme(package: str) -> str:
    return (ROOT / package / "README.md").read_text("utf-8")


def spans(text: str) -> list[str]:
    """The text in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def file_of(package: str, name: str) -> Path:
    """The file of a path that is relative to the package or to the root of the repository."""
    inside = ROOT / package / name
    return inside if inside.exists() else ROOT / name


def defined(file: Path) -> set[str]:
    """Names of the functions, classes and values that a file defines at top level."""
    names = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_readme_fits_on_a_screen(package):
    assert 20 <= len(readme(package).splitlines()) <= 45


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_folders_of_a_readme_exist(package):
    paths = [span for span in spans(readme(package)) if re.fullmatch(r"[\w/]+(\.(py|md)|/)", span)]
    paths += [span for span in spans(readme(package)) if span.startswith("tests/")]
    assert paths and not [path for path in paths if not file_of(package, path).exists()]


@pytest.mark.parametrize("package", PACKAGES)
def test_entry_points_of_a_readme_are_defined_in_their_files(package):
    rows = re.findall(r"^\| (`.+?) \| (`.+?) \|", readme(package), re.MULTILINE)
    missing = [
        (name, file)
        for names, files in rows
        for name in spans(names)
        for file in spans(files)
        if name not in defined(file_of(package, file))
    ]
    assert rows and not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_dotted_names_of_a_readme_can_be_imported(package):
    for name in re.findall(r"`(soda_jax(?:\.\w+)+)`", readme(package)):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                found = getattr(found, part)
            break
