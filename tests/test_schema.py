"""The schema of a run: defaults, checks with the nearest name, and the reference page."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from soda_jax import schema
from soda_jax.configs import base
from soda_jax.data.storage import modes
from soda_jax.errors import UserError
from soda_jax.model.remat import POLICIES
from soda_jax.parallel.rules import MESH_AXES
from soda_jax.schema_fields import describe, named_parts, parse, part, setting
from soda_jax.tokens.documents import COMPOSITIONS, ORDERS


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = setting(3, "a size", minimum=1, maximum=9)
    kind: str = setting("a", "a kind", choices=("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = setting(doc="a name")
    rate: float = setting(0.5, "a rate", greater_than=0)
    on: bool = setting(False, "a switch")
    inner: Inner = part(Inner, "a part")
    others: dict[str, Inner] = named_parts("named parts")


def test_values_are_converted_and_defaults_filled_in():
    found = parse(Outer, {"name": "x", "rate": 2, "others": {"z": {}, "a": {"size": 4}}})
    assert found == Outer("x", 2.0, False, Inner(), {"a": Inner(4), "z": Inner()})
    assert isinstance(found.rate, float) and list(found.others) == ["a", "z"]
    assert parse(Outer, found) is found
    assert parse(Outer, schema.to_dict(found)) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name is missing"),
        ({"name": "x", "rat": 1}, "rat is unknown; did you mean rate?"),
        ({"name": "x", "zzzz": 1}, "zzzz is unknown; known keys: inner, name, on, others, rate"),
        ({"name": "x", "inner": {"siz": 1}}, "inner.siz is unknown; did you mean size?"),
        ({"name": "x", "others": {"q": {"size": 0}}}, "others.q.size = 0 must be an integer, at"),
        (
            {"name": "x", "inner": {"size": 10}},
            "inner.size = 10 must be an integer, at least 1 and",
        ),
        ({"name": "x", "inner": {"size": 2.0}}, "inner.size = 2.0 must be an integer"),
        ({"name": "x", "inner": {"size": True}}, "inner.size = True must be an integer"),
        ({"name": "x", "inner": {"kind": "c"}}, "inner.kind = 'c' must be one of a, b"),
        ({"name": "x", "inner": 3}, "inner = 3 must be a group of settings"),
        ({"name": "x", "rate": 0}, "rate = 0.0 must be a number, above 0"),
        ({"name": "x", "rate": float("nan")}, "rate = nan must be a number"),
        ({"name": "x", "on": 1}, "on = 1 must be True or False"),
        ({"name": 3}, "name = 3 must be a string"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_dotted_name(values, message):
    with pytest.raises(UserError) as error:
        parse(Outer, values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_setting_is_described_with_default_and_bounds():
    rows = {name: (default, allowed, doc) for name, default, allowed, doc in describe(Outer)}
    assert rows["name"] == ("required", "string", "a name")
    assert rows["inner.size"] == ("3", "integer, at least 1 and at most 9", "a size")
    assert rows["others.NAME.kind"] == ("'a'", "one of a, b", "a kind")
    assert rows["others.NAME"] == ("", "", "named parts")


def test_the_defaults_of_configs_are_those_of_the_schema():
    assert schema.run_config(base.default()) == schema.RunConfig()
    source = base.source("data/x", 2.0, order="audio_first")
    assert parse(schema.SourceConfig, source) == schema.SourceConfig("data/x", 2.0, "audio_first")


def test_a_new_field_is_a_key_of_every_config_and_reaches_the_component():
    """One line in the schema is all that a new setting needs."""
    data = dataclasses.make_dataclass(
        "DataConfig",
        [("drop_tail", bool, setting(True, "drop the tail"))],
        bases=(schema.DataConfig,),
        frozen=True,
    )
    assert parse(data, {"drop_tail": False}, "data").drop_tail is False
    with pytest.raises(UserError, match=r"data\.drop_tial is unknown; did you mean drop_tail\?"):
        parse(data, {"drop_tial": False}, "data")


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"batch_size = 8 is not a multiple of gradient_accum"):
        schema.run_config({"batch_size": 8, "gradient_accumulation": 3})


def test_the_choices_are_those_that_are_implemented():
    def choices(cls, name):
        (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
        return field.metadata["choices"]

    assert choices(schema.ModelConfig, "remat") == POLICIES
    assert choices(schema.SourceConfig, "composition") == COMPOSITIONS
    assert choices(schema.SourceConfig, "order") == (*ORDERS, "both")
    documented = re.findall(r"^\| (\w+) \| [^-]", modes.__doc__, re.MULTILINE)
    assert set(choices(schema.DataConfig, "storage")) == set(documented) - {"mode"}
    assert tuple(field.name for field in dataclasses.fields(schema.MeshConfig)) == tuple(MESH_AXES)


def test_no_setting_is_undocumented():
    rows = list(describe(schema.RunConfig))
    assert len(rows) > 60 and all(doc for *_, doc in rows)


def test_reading_the_schema_does_not_import_jax():
    code = "import soda_jax.schema, sys; sys.exit('jax' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
