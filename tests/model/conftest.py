"""Exact matrix products, which the equalities need, and quick compilation."""

from toys import exact_and_soon  # noqa: F401, a fixture
