"""Exact matrix products, since equality is claimed, and quick compilation."""

from toys import exact_and_soon  # noqa: F401, a fixture
