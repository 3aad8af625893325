"""The lock file, the imports of the command line, and an installation without extras."""

import ast
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from soda_jax import cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    """Name → version of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    return dict(line.split("==") for line in lines)


def setup_lists() -> dict[str, list[Requirement]]:
    """The lists of requirements at the top of setup.py, which is not executed."""
    lists: dict[str, list[Requirement]] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            strings = [e.value for e in node.value.elts if isinstance(e, ast.Constant)]
            lists[ast.unparse(node.targets[0])] = [Requirement(str(text)) for text in strings]
    return lists


def test_lock_satisfies_every_requirement_of_core_and_extras(lock: dict[str, str]) -> None:
    lists = setup_lists()
    assert {"CORE", "TOKENIZE", "DEMO", "EVAL", "DEV"} <= lists.keys()
    for requirement in (one for group in lists.values() for one in group):
        name = requirement.name.lower().replace("_", "-")
        assert name in lock, f"requirements.lock lacks {requirement}"
        assert requirement.specifier.contains(lock[name]), f"{requirement}: locked {lock[name]}"


def test_lock_contains_no_torch_tensorflow_or_cuda(lock: dict[str, str]) -> None:
    heavy = ("torch", "tensorflow", "tf-", "nvidia", "cuda", "triton", "jax-cuda", "libtpu")
    assert not [name for name in lock if name.startswith(heavy)]


def test_start_of_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys; from soda_jax.cli import make_parser; make_parser(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"jax", "numpy", "apache_beam", "orbax", "grain", "sklearn", "matplotlib", "rich"}
    assert not heavy & set(run.stdout.split())


def test_each_command_has_a_summary_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert f"soda {name}" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    "command, actions",
    [
        ("codec", ("fit", "fit-units", "encode", "decode")),
        ("tokenizer", ("train",)),
        ("generate --workdir=x", ("speak", "transcribe", "continue")),
    ],
)
def test_each_action_has_an_example_that_parses(
    command: str, actions: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for action in actions:
        with pytest.raises(SystemExit):
            cli.main([*command.split(), action, "--help"])
        example = capsys.readouterr().out.split("example:")[1].strip()
        assert action in example
        assert cli.make_parser().parse_args(shlex.split(example)[1:]).action == action


@pytest.mark.parametrize(
    "module, extra",
    [
        ("apache_beam", "beam"),
        ("distributed", "dask"),
        ("pyarrow", "tokenize"),
        ("sklearn.cluster", "tokenize"),
        ("torch", "two-encoder"),
        ("seqio", "seqio"),
    ],
)
def test_missing_extra_is_named_in_one_line(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from soda_jax.commands import inspect

    def run(args: object) -> int:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(inspect, "run", run)
    assert cli.main(["inspect", "data"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"pip install 'soda-jax[{extra}]'" in message


def test_missing_module_that_is_no_extra_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from soda_jax.commands import inspect

    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'soda_jax.gone'", name="soda_jax.gone")

    monkeypatch.setattr(inspect, "run", run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["inspect", "data"])


def test_extras_of_the_command_line_are_extras_of_the_package() -> None:
    provided = metadata.metadata("soda-jax").get_all("Provides-Extra") or []
    assert set(cli.EXTRAS.values()) <= set(provided)


def test_configs_are_part_of_the_package() -> None:
    import soda_jax.configs

    folder = Path(next(iter(soda_jax.configs.__path__)))
    assert (folder / "demo.py").is_file() and (folder / "soda_4b.py").is_file()
