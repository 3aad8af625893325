"""Trees as names: what is stored is nested dicts of arrays, so loading needs no Python class."""

from collections.abc import Sequence
from typing import Any


def nested(tree: Any) -> dict[str, Any]:
    """`tree` as nested dicts keyed by field name, dict key or list index, all strings.

    NamedTuples, lists and registered classes become dicts; nodes with no leaf disappear.

    Raises:
      ValueError: if two leaves get one name (a dict with the keys 0 and "0").
    """
    import jax

    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *folders, name = [jax.tree_util.keystr((key,), simple=True) for key in path]
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
        if name in place:
            raise ValueError(f"two leaves of the state are called {'/'.join([*folders, name])}")
        place[name] = leaf
    return result


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts as one dict keyed by `a/b/c`."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= {f"{name}/{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            result[name] = value
    return result


def like(template: Any, stored: dict[str, Any]) -> Any:
    """The leaves of `stored` (as `nested` made it) in the tree structure of `template`."""
    import jax

    def find(path: Sequence[Any], _: Any) -> Any:
        place: Any = stored
        for key in path:
            place = place[jax.tree_util.keystr((key,), simple=True)]
        return place

    return jax.tree_util.tree_map_with_path(find, template)


def differences(wanted: dict[str, Any], stored: dict[str, Any], *, dtypes: bool) -> list[str]:
    """One phrase for each leaf that only one side has or whose shape (and dtype) differs.

    Args:
      wanted: nested dicts of things with `.shape` and `.dtype`, what the program expects.
      stored: likewise, what the checkpoint holds.
      dtypes: whether dtypes must agree as well; if not, a float may differ from another float, as
        one can be cast to the other, but not from an integer, a bool or a complex number.
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
            phrases.append(f"{name} is {list(have.shape)} there and {list(want.shape)} here")
        elif want.dtype != have.dtype and (dtypes or not castable(want.dtype, have.dtype)):
            cast = "" if dtypes else " (only floats are cast, to floats)"
            phrases.append(f"{name} is {have.dtype} there and {want.dtype} here{cast}")
    return sorted(phrases)
