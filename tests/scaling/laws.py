"""Tables of runs whose losses follow a known law."""

import numpy as np

from soda_jax.scaling.grid import to_csv
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import Surface

LAWS = (
    Surface(0.36, 0.40, 1.86, 4.15, 1.05),
    Surface(0.34, 0.28, 1.69, 406 / 1e6**0.34, 410 / 1e9**0.28),  # Hoffmann et al.
    Surface(0.684, 0.439, 3.169, 215_886 / 1e6**0.684, 4750 / 1e9**0.439),  # arXiv 2603.22339, SODA
)


def planted(
    law: Surface,
    budgets: int = 7,
    sizes: int = 9,
    noise: float = 0.0,
    seed: int = 0,
    drift: float = 1,
) -> Runs:
    """Runs around the optimum, C = 6ND; `drift` moves the sizes by this factor per budget."""
    flops = np.geomspace(1e18, 1e20, budgets)
    middle = law.optimum(flops / 6)[0] * drift ** np.arange(budgets)
    params = (middle[:, None] * np.geomspace(0.25, 4, sizes)).ravel()
    budget = np.repeat(flops, sizes)
    tokens = budget / (6 * params)
    loss = law.loss(params, tokens)
    loss = loss + noise * np.random.default_rng(seed).standard_normal(len(loss))
    return Runs(budget, params, tokens, loss, {}, {})


def rows_of(runs: Runs, **more) -> list[dict]:
    """The rows of a table; `more` are further columns, a list or one value."""
    columns = {
        name: getattr(runs, name).tolist() for name in ("budget", "params", "tokens", "loss")
    }
    columns |= {
        name: value if isinstance(value, list) else [value] * len(runs)
        for name, value in more.items()
    }
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def write(path, rows) -> str:
    """Writes the rows as CSV and returns the path."""
    path.write_text(to_csv(rows))
    return str(path)
