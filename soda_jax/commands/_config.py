"""Reads `--config=FILE --config.some.key=value` with ml_collections."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError


def load_config(file: str, overrides: Sequence[str]) -> Any:
    """Returns the ConfigDict of a config file with `--config.key=value` overrides applied.

    Args:
      file: a path, or the name of an installed config ("demo", "configs/demo.py").
      overrides: command-line arguments, which must be `--config.key=value`.

    Raises:
      UserError: if the file is missing or invalid, or an override has an unknown key (the message
        suggests a similar one) or an invalid value.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    path = _find(file)
    overrides = _one_word_each(overrides)
    arguments = ["soda", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    others = [o for o in overrides if not o.startswith("--config.")]
    if others:
        raise UserError(f"unknown option {others[0]}; overrides are spelled --config.key=value")
    _check_keys(path, overrides)
    try:
        values(arguments)
    except flags.Error as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from None
    return values.config


def overridden(overrides: Sequence[str]) -> list[str]:
    """Returns the dotted names of the settings that `overrides` change."""
    words = _one_word_each(overrides)
    return [word.removeprefix("--config.").partition("=")[0] for word in words]


def _one_word_each(overrides: Sequence[str]) -> list[str]:
    """Rewrites `--config.key value` and `--noconfig.key`, which absl allows, as `--config.key=…`."""
    words: list[str] = []
    for word in overrides:
        last = words[-1] if words else ""
        if word.startswith("--noconfig."):
            words.append(f"--{word.removeprefix('--no')}=false")
        elif not word.startswith("--") and last.startswith("--config.") and "=" not in last:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _find(file: str) -> Path:
    path = Path(file)
    if path.is_file():
        return path
    import soda_jax.configs

    folder = Path(soda_jax.configs.__path__[0])
    installed = folder / f"{path.stem}.py"
    # Only these spellings refer to an installed config; other paths must exist.
    spellings = (Path(path.stem), Path("configs", path.stem), Path("configs", installed.name))
    if path in spellings and installed.is_file():
        return installed
    names = sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "base"))
    raise UserError(f"no config file {file}; give a path or one of {', '.join(names)}")


def _check_keys(path: Path, overrides: Sequence[str]) -> None:
    """Raises UserError for an unknown key; the message has a similar key or the known keys."""
    config = _get_config(path)
    for override in overrides:
        dotted = override.removeprefix("--config.").split("=", 1)[0]
        node: Any = config
        names = re.split(r"\.", dotted)
        for depth, name in enumerate(names):
            keys = list(node.keys()) if hasattr(node, "keys") else []
            if name in keys:
                node = node[name]
                continue
            near = difflib.get_close_matches(name, keys, n=1, cutoff=0.4)
            here = ".".join(names[:depth])
            options = ", ".join(sorted(keys))
            hint = f"did you mean {near[0]}?" if near else f"keys of {here or path}: {options}"
            raise UserError(f"{path} has no key {dotted}; {hint}")


def _get_config(path: Path) -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("soda_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except Exception as error:
        raise UserError(f"{path} is not a config file: {type(error).__name__}: {error}") from None
