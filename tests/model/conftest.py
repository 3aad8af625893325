"""Exact matrix products, since equality is claimed, and quick compilation."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def exact_and_soon() -> Iterator[None]:
    """f32 products are f32 products, on any backend; programs this small need no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
