"""A tiny run and its export, shared by the tests, which do not change them."""

from pathlib import Path

import pytest
from convert_toys import write_run
from toys import full_precision  # noqa: F401, a fixture

from soda_jax.convert.to_hf import to_huggingface


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoint 7."""
    workdir = tmp_path_factory.mktemp("run")
    write_run(workdir)
    return workdir


@pytest.fixture(scope="package")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `soda convert to-hf` in several files."""
    folder = tmp_path_factory.mktemp("exported") / "toy"
    to_huggingface(run, folder, shard_bytes=8_000)
    return folder
