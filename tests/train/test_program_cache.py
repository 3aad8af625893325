"""Which runs of one process share a compiled program."""

import copy
import dataclasses

from train_toys import LAYOUT

from soda_jax.schema import RunConfig, SourceConfig, to_dict
from soda_jax.tokens.vocabulary import VocabularyLayout
from soda_jax.train.program_cache import ProgramCache

# Settings that the compiled functions do not depend on, or that are in `Rates`.
SHARED = {
    "steps", "start_from", "start_from_step", "optimizer.peak_lr", "data", "checkpoint", "evaluate",
    "export", "log",
}  # fmt: skip
OTHERWISE = {"data.sequence_length", "log.metrics"}


def replaced(config, name, value):
    """A copy with another value, which need not be valid."""
    config = copy.copy(config)
    object.__setattr__(config, name, value)
    return config


def settings(config, prefix=""):
    """Yields the dotted name of each setting and a copy of the config in which it has another value."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            for dotted, changed in settings(value, f"{name}."):
                yield dotted, replaced(config, field.name, changed)
        else:
            other = {
                bool: lambda old: not old,
                str: lambda old: f"{old}x",
                int: lambda old: old + 1,
                float: lambda old: old + 0.125,
                dict: lambda old: {"speech": SourceConfig("speech", 1.0)},
            }[type(value)](value)
            yield name, replaced(config, field.name, other)


def test_runs_share_a_program_only_if_they_differ_in_settings_that_are_not_in_it():
    config, key = RunConfig(), ProgramCache().key
    names = []
    for name, changed in settings(config):
        names.append(name)
        assert to_dict(changed) != to_dict(config)
        shared = name not in OTHERWISE and (name in SHARED or name.split(".")[0] in SHARED)
        assert (key(changed, LAYOUT) == key(config, LAYOUT)) == shared, name
    assert len(names) > 50 and {*OTHERWISE, "model.head", "model.rope.theta", "seed"} <= {*names}


def test_the_layout_and_the_sources_are_in_the_key():
    config, key = RunConfig(), ProgramCache().key
    other = VocabularyLayout(40, (0, 1, 2), 1, 2, (12, 6, 10))
    found = {
        key(config, LAYOUT, 2, (3,)),
        key(config, other, 2, (3,)),
        key(config, LAYOUT, 3, (3,)),
        key(config, LAYOUT, 2, (2, 3)),
    }
    assert len(found) == 4
