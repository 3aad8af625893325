"""Makes the default settings of all experiments, and the recipe of the SODA suite.

`soda_jax/schema.py` declares all keys with their defaults and meanings; see docs/config.md.
"""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from soda_jax.schema import RunConfig, SourceConfig, to_dict


def default() -> ConfigDict:
    """Returns all settings of a run with their defaults.

    An experiment may only change values and add data sources. The ConfigDict is locked, so a
    misspelled key is an error.
    """
    return ConfigDict(to_dict(RunConfig())).lock()


def source(path: str, weight: float, **view: Any) -> ConfigDict:
    """Returns the config of a data source; `view` are further fields of `SourceConfig`."""
    return ConfigDict(dataclasses.asdict(SourceConfig(path, weight, **view)))


def suite_sources() -> dict[str, ConfigDict]:
    """Returns the suite's data mixture: 95% speech in both orders, 5% text (SODA, data table)."""
    speech = {"yodas2": 131, "emilia_yodas": 73, "emilia": 37}  # billions of tokens
    sources = {
        name: source(f"data/{name}", 0.95 * tokens / sum(speech.values()))
        for name, tokens in speech.items()
    }
    sources["nemotron"] = source("data/nemotron", 0.05, order="text_first", composition="text")
    return sources


def suite_learning_rate(hidden_size: int, batch: int = 512) -> float:
    """Returns 0.003 · √(batch/256) · √(1024/hidden_size) (SODA, suite training table)."""
    return 0.003 * math.sqrt(batch / 256) * math.sqrt(1024 / hidden_size)


def suite(
    *,
    hidden_size: int,
    num_layers: int,
    intermediate_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> ConfigDict:
    """Returns the recipe of the SODA suite: 500B tokens, 512 × 4096 tokens per step."""
    config = default()
    config.steps = 238_419
    config.batch_size = 512
    config.model.update(
        compute_dtype="bfloat16",
        hidden_size=hidden_size,
        num_layers=num_layers,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
    config.optimizer.peak_lr = suite_learning_rate(hidden_size)
    config.data.sources = ConfigDict(suite_sources())
    config.mesh.update(data=-1, fsdp=-1)
    return config
