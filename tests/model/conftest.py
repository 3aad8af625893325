"""Exact matrix products, which the equalities need, and quick compilation."""

from toys import full_precision  # noqa: F401, a fixture
