"""A tiny data set on disk and a tiny config for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from run_toys import Watcher
from toys import full_precision, random_params  # noqa: F401, a fixture
from train_toys import make_model, tiny_config, write_datasets

from soda_jax.model import ModelFunctions
from soda_jax.train.loop import DONE, train


@pytest.fixture(autouse=True, scope="package")
def compilation_cache() -> Iterator[None]:
    """Disables the compilation cache, which `train` enables, for the tests of other packages."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="package")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets `speech` and `text`; not to be changed."""
    return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(datasets: Path) -> Callable[..., Any]:
    """config(**changes): a run of six steps on eight devices; dotted names as keywords with `__`."""
    return lambda **changes: tiny_config(datasets, **changes)


@pytest.fixture(scope="package")
def model() -> ModelFunctions:
    """A decoder of a few thousand parameters."""
    return make_model()


@pytest.fixture(scope="package")
def params(model: ModelFunctions) -> dict:
    """Random parameters of `model`."""
    return random_params(model)


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory, datasets: Path) -> tuple[Path, Watcher]:
    """The workdir of an uninterrupted run of six steps, and its hook; not to be changed."""
    workdir = tmp_path_factory.mktemp("whole")
    hook = Watcher(every=4)
    assert train(tiny_config(datasets), workdir, hooks=[hook]) == DONE
    return workdir, hook
