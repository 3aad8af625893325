"""Exact matrix products, which the equality tests need, and fast compilation."""

from toys import exact_and_soon  # noqa: F401, a fixture
