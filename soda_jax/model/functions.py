"""Provides a decoder as pure functions of a parameter dict, for jit, sharding and checkpoints."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from soda_jax.model.config import DecoderConfig
from soda_jax.model.decoder import Decoder, stored_matrices


def logical_axes(params: nnx.State) -> dict[str, Any]:
    """Returns the logical axes of every parameter, as a nested dict with the same structure."""

    def axes(variable: nnx.Variable) -> tuple:
        named = variable.get_metadata("logical_axes")
        # Stacked layers have one more leading axis than the layer that declares the axes.
        extra = len(variable.get_value().shape) - len(named)
        return ("layers",) * extra + tuple(named)

    tree = jax.tree.map(axes, params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


class ModelFunctions:
    """A decoder as pure functions of a parameter dict.

    Attributes:
      config: decoder config.
      abstract: the parameters as `jax.ShapeDtypeStruct`s, a nested dict.
      axes: logical axes of the parameters, a dict with the same structure.
      matrices: which parameters together form one matrix, see `decoder.stored_matrices`.
    """

    def __init__(self, config: DecoderConfig):
        self.config = config
        model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))  # nothing is allocated
        self._graph, self._state = nnx.split(model, nnx.Param)
        self.abstract = nnx.to_pure_dict(self._state)
        self.axes = logical_axes(self._state)
        self.matrices: tuple[dict[str, np.ndarray], ...] = stored_matrices(config)

    def init(self, seed: int) -> dict[str, Any]:
        """Returns new random parameters, f32."""
        return nnx.to_pure_dict(nnx.state(Decoder(self.config, nnx.Rngs(seed)), nnx.Param))

    def bind(self, params: dict[str, Any]) -> Decoder:
        """Returns a decoder with `params`, which may be tracers."""
        state = jax.tree.map(lambda x: x, self._state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)
