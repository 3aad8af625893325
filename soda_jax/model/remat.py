"""What the backward pass keeps of a layer and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Names of values for the policies: the input of a layer, and the result of attention.
CARRY, ATTENTION = "carry", "attention"

POLICIES = ("none", "full", "attention", "dots", "offload")


def checkpointed(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`layer(x, …)` under a policy by name.

    Args:
      layer: its first argument is what the layers hand on, `[batch, sequence, d]`.
      policy: "none" keeps all activations. "full" keeps the inputs of the layers and computes a layer
        again in the backward pass. "attention" also keeps the result of attention, the part that costs
        most to compute again. "dots" keeps the results of all matrix products. "offload" is "full" with
        the inputs of the layers in the memory of the host (SODA's runs, "carry offload").
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
