"""Typed settings as frozen dataclasses whose fields have a description and allowed values.

`soda_jax.schema` declares the settings of a run with `setting`, `part` and `named_parts`. Defaults,
validation and the reference page are derived from these declarations, so a new setting is one line.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from soda_jax.errors import UserError

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    minimum: float | None = None,
    greater_than: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a setting of type int, float, bool or str.

    Args:
      default: value if a config does not set it; without a default the setting is required.
      doc: description with the unit, for the reference page.
      minimum, maximum: inclusive bounds of a number.
      greater_than: exclusive lower bound of a number.
      choices: the allowed strings; if empty, any string is allowed.
    """
    metadata = {
        "doc": doc,
        "minimum": minimum,
        "greater_than": greater_than,
        "maximum": maximum,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


def part(cls: type, doc: str) -> Any:
    """Declares a nested group of settings."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc})


def named_parts(doc: str) -> Any:
    """Declares a mapping from a name chosen by the user to a group of settings."""
    return dataclasses.field(default_factory=dict, metadata={"doc": doc})


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as nested plain dictionaries."""
    return dataclasses.asdict(config)


def parse(cls: type[T], values: Any, path: str = "") -> T:
    """Builds a config dataclass from a mapping and checks every value.

    Args:
      cls: a dataclass declared with `setting`, `part` and `named_parts`.
      values: nested mappings, plain or ml_collections; an instance of `cls` is returned unchanged.
      path: dotted name of the group, for error messages.

    Raises:
      UserError: for an unknown key (the message suggests the nearest name), a missing required key,
        or a value that has the wrong type, is out of bounds or is not in `choices`.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise UserError(f"{path or 'config'} = {values!r} must be a group of settings")
    given = dict(values.items())
    fields = {field.name: field for field in _fields(cls)}
    for key in given:
        if key not in fields:
            raise unknown_key(_join(path, str(key)), str(key), fields)
    types = typing.get_type_hints(cls)
    parsed: dict[str, Any] = {}
    for name, field in fields.items():
        dotted, kind = _join(path, name), types[name]
        if name not in given:
            if _required(field):
                raise UserError(f"{dotted} is missing; set it in the config")
            continue
        value = given[name]
        if dataclasses.is_dataclass(kind):
            parsed[name] = parse(typing.cast(type, kind), value, dotted)
        elif group := _named_kind(kind):
            parsed[name] = {
                str(key): parse(group, one, _join(dotted, str(key)))
                for key, one in sorted(dict(value.items()).items())
            }
        else:
            parsed[name] = _checked(dotted, value, kind, field.metadata)
    return cls(**parsed)


def unknown_key(dotted: str, key: str, known: Iterable[str]) -> UserError:
    """Returns the error for a key that does not exist, with the nearest existing name."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
    return UserError(f"{dotted} is unknown; {hint}")


def describe(cls: type, path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields (dotted name, default, allowed values, description) of each setting, group by group.

    A group has an empty default and empty allowed values. `NAME` is a name chosen by the user.
    """
    types = typing.get_type_hints(cls)
    groups = []
    for field in _fields(cls):
        kind, dotted = types[field.name], _join(path, field.name)
        if dataclasses.is_dataclass(kind) or _named_kind(kind):
            groups.append((dotted, kind, field.metadata["doc"]))
            continue
        default = "required" if _required(field) else repr(field.default)
        yield dotted, default, _allowed(kind, field.metadata), field.metadata["doc"]
    for dotted, kind, doc in groups:
        named = _named_kind(kind)
        inner = f"{dotted}.NAME" if named else dotted
        yield inner, "", "", doc
        yield from describe(named or kind, inner)


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(typing.cast(Any, cls))


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _named_kind(kind: Any) -> type | None:
    """Returns the dataclass of the values of `Mapping[str, dataclass]`, None for other types."""
    arguments = typing.get_args(kind)
    if len(arguments) == 2 and dataclasses.is_dataclass(arguments[1]):
        return typing.cast(type, arguments[1])
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _allowed(kind: type, limits: Mapping[str, Any]) -> str:
    """Returns a description of the allowed values of a setting."""
    if limits["choices"]:
        return "one of " + ", ".join(limits["choices"])
    bounds = {
        "at least": limits["minimum"],
        "above": limits["greater_than"],
        "at most": limits["maximum"],
    }
    text = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    name = {int: "integer", float: "number", bool: "True or False", str: "string"}[kind]
    return f"{name}, {text}" if text else name


def _checked(dotted: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    """Returns `value` as `kind`; raises UserError if the type or the value is not allowed."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right_type = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if right_type and kind is float and not math.isfinite(value):
        right_type = False
    if (
        not right_type
        or (limits["choices"] and value not in limits["choices"])
        or (limits["minimum"] is not None and value < limits["minimum"])
        or (limits["greater_than"] is not None and value <= limits["greater_than"])
        or (limits["maximum"] is not None and value > limits["maximum"])
    ):
        raise UserError(f"{dotted} = {value!r} must be {_article(_allowed(kind, limits))}")
    return value


def _article(allowed: str) -> str:
    article = {"integer": "an ", "number": "a ", "string": "a "}.get(allowed.split(",")[0], "")
    return article + allowed
