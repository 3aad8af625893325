"""A tiny data set on disk, a tiny config for it, and one compilation cache for all runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from toys import random_params
from train_toys import make_model, tiny_config, write_datasets

from soda_jax.model import ModelFunctions


@pytest.fixture(autouse=True, scope="package")
def exact_and_soon() -> Iterator[None]:
    """f32 products are f32 products, on any backend; programs this small need no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="package")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`train` keeps its programs here and not in the user's folder; equal runs compile once."""
    folder = tmp_path_factory.mktemp("xla")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SODA_CACHE", str(folder))
        yield folder
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
