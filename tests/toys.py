"""What the tests of model and training share."""

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model import ModelFunctions


def random_params(model: ModelFunctions, seed: int = 0) -> dict:
    """Normal weights of deviation 0.2 and norms of about 1, without compiling `model.init`."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        mean = 1.0 if "norm" in path[-1].key else 0.0
        return jnp.asarray(mean + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(make, model.abstract)
