"""Exact matrix products, which the equality tests need, and fast compilation."""

from toys import full_precision  # noqa: F401, a fixture
