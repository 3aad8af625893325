"""Rematerialization policies: which activations of a layer the backward pass recomputes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Names, for `checkpoint_name`, of the input of a layer and of the result of attention.
CARRY, ATTENTION = "carry", "attention"

POLICIES = ("none", "full", "attention", "dots", "offload")


def checkpointed(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Returns `layer(x, …)` with a rematerialization policy.

    Args:
      layer: function of the residual stream `[batch, sequence, d]` and other arguments.
      policy: "none" keeps all activations. "full" keeps the inputs of the layers and recomputes
        the rest. "attention" also keeps the result of attention, which is the most expensive to
        recompute. "dots" keeps the inputs of the layers and the results of all matrix products and
        of attention. "offload" keeps the inputs of the layers in host memory and recomputes the
        rest (the "carry offload" of SODA's runs).
    """
    if policy == "none":
        return layer
    policies = jax.checkpoint_policies
    chosen = {
        "full": None,
        "attention": policies.save_only_these_names(ATTENTION),
        "dots": policies.save_from_both_policies(
            policies.checkpoint_dots, policies.save_only_these_names(ATTENTION)
        ),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[CARRY],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[policy]

    def named(x: jax.Array, *rest: Any) -> Any:
        return layer(checkpoint_name(x, CARRY), *rest)

    return jax.checkpoint(named, policy=chosen, prevent_cse=False)
