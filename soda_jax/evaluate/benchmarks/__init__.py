"""Benchmarks, one module each; `load` registers their evaluators.

A module whose name does not start with "_" defines one function with the decorator `evaluator` of
`soda_jax.evaluate.evaluators`. Adding such a file is all that a new benchmark needs.
"""

import importlib
import pkgutil


def load() -> None:
    """Imports every benchmark module, which registers its evaluator."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
