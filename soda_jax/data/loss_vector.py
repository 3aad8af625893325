"""Computes the loss vector: the mean loss by token class and by source."""

import numpy as np


def loss_vector(
    nll: np.ndarray, count: np.ndarray, class_names: tuple[str, ...], source_names: tuple[str, ...]
) -> dict[str, float]:
    """Returns the mean loss in nats per token, by class and by source.

    Args:
      nll, count: summed loss and number of targets, f32 or f64 `[sources, classes]`; see
        `soda_jax.model.loss.class_sums`.
      class_names, source_names: names of the columns and of the rows of these arrays.

    Returns:
      `loss/<class>`, `loss/all`, `loss/<source>/all`, `loss/<source>/<class>`; a class or source
      without a target is omitted.
    """
    result: dict[str, float] = {}

    def add(name: str, total: float, tokens: float) -> None:
        if tokens > 0:
            result[f"loss/{name}"] = float(total / tokens)

    add("all", nll.sum(), count.sum())
    for column, name in enumerate(class_names):
        add(name, nll[:, column].sum(), count[:, column].sum())
    for row, source in enumerate(source_names):
        add(f"{source}/all", nll[row].sum(), count[row].sum())
        for column, name in enumerate(class_names):
            add(f"{source}/{name}", nll[row, column], count[row, column])
    return result
