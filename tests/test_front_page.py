"""README and docs/: links exist, commands parse, and the figure is the output of its script."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from soda_jax import cli

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(page: Path) -> list[str]:
    """The fenced blocks of a page that name no language."""
    return re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not [name for name in pages if f"({name})" not in index]


def test_commands_of_the_readme_parse() -> None:
    text = "".join(blocks(ROOT / "README.md")).replace("\\\n", " ")
    lines = text.splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("soda ")]
    assert len(commands) > 5
    for command in commands:
        _, unknown = cli.make_parser().parse_known_args(command)
        unknown = [option for option in unknown if not option.startswith("--config.")]
        assert not unknown, f"soda {shlex.join(command)}: no option {unknown}"


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", page.read_text(), re.M):
            name = "".join(target)
            assert re.search(rf"^{name}:", makefile, re.M), f"{page.name}: make {name}"


@pytest.mark.parametrize("name, function", [("flow", "flow"), ("legal_head", "figure")])
def test_a_picture_is_what_its_script_draws(name: str, function: str) -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "figures" / f"{name}.py"))[function]
    written = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert draw() == written, f"run python docs/figures/{name}.py"
