"""Converts pytrees to nested dicts of arrays, which can be restored without custom classes."""

from collections.abc import Sequence
from typing import Any


def nested(tree: Any) -> dict[str, Any]:
    """Returns `tree` as nested dicts; field names, dict keys and list indices become string keys.

    NamedTuples, lists and registered classes become dicts; nodes without leaves are removed.

    Raises:
      ValueError: if two leaves have the same name, for example in a dict with the keys 0 and "0".
    """
    import jax

    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *folders, name = [jax.tree_util.keystr((key,), simple=True) for key in path]
        node = result
        for folder in folders:
            node = node.setdefault(folder, {})
        if name in node:
            raise ValueError(f"two leaves of the state are called {'/'.join([*folders, name])}")
        node[name] = leaf
    return result


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as one dict with keys such as `a/b/c`."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= {f"{name}/{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            result[name] = value
    return result


def like(template: Any, stored: dict[str, Any]) -> Any:
    """Returns the leaves of `stored` in the structure of `template`; the inverse of `nested`."""
    import jax

    def find(path: Sequence[Any], _: Any) -> Any:
        node: Any = stored
        for key in path:
            node = node[jax.tree_util.keystr((key,), simple=True)]
        return node

    return jax.tree_util.tree_map_with_path(find, template)


def differences(wanted: dict[str, Any], stored: dict[str, Any], *, dtypes: bool) -> list[str]:
    """Returns a message for each leaf that is missing on one side or differs in shape or dtype.

    Args:
      wanted: what the program expects, nested dicts of leaves with `.shape` and `.dtype`.
      stored: what the checkpoint contains, in the same form.
      dtypes: whether dtypes must be equal; if not, any two float dtypes are accepted.
    """
    import jax.numpy as jnp

    def castable(want: Any, have: Any) -> bool:
        return all(jnp.issubdtype(dtype, jnp.floating) for dtype in (want, have))

    mine, theirs = flatten(wanted), flatten(stored)
    phrases = [f"{name} is not in the checkpoint" for name in mine if name not in theirs]
    phrases += [f"{name} is only in the checkpoint" for name in theirs if name not in mine]
    for name in mine.keys() & theirs.keys():
        want, have = mine[name], theirs[name]
        if tuple(want.shape) != tuple(have.shape):
            phrases.append(
                f"{name} is {list(have.shape)} in the checkpoint and {list(want.shape)} in the model"
            )
        elif want.dtype != have.dtype and (dtypes or not castable(want.dtype, have.dtype)):
            cast = "" if dtypes else " (only floats can be cast)"
            phrases.append(
                f"{name} is {have.dtype} in the checkpoint and {want.dtype} in the model{cast}"
            )
    return sorted(phrases)
