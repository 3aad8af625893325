"""The config of a planned run, for `soda train` and as a file."""

from typing import Any

from soda_jax.scaling.grid import PlannedRun

# The recipe of the IsoFLOP runs (SODA, training table), except for what the plan decides.
_OPTIMIZER = {
    "beta1": 0.95,
    "eps": 1e-15,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "z_loss": 0.0,
    "schedule": "wsd",
    "warmup_fraction": 0.1,
    "decay_fraction": 0.2,
    "cautious": True,
}


def settings_of(run: PlannedRun) -> dict[str, Any]:
    """Returns the settings of a run that differ from `configs/base.py`, nested by section."""
    shape = run.shape
    return {
        "steps": run.steps,
        "batch_size": run.batch,
        "model": {
            "hidden_size": shape.width,
            "num_layers": shape.layers,
            "intermediate_size": shape.d_ff,
            "num_heads": shape.heads,
            "num_kv_heads": shape.heads,
            "head_dim": shape.head_dim,
            "tie_embeddings": False,
        },
        "optimizer": {"peak_lr": run.lr, "beta2": run.beta2, **_OPTIMIZER},
        "data": {"sequence_length": run.sequence_length},
        "mesh": {"data": -1, "fsdp": -1},
    }


def config_of(run: PlannedRun, data: str = "") -> Any:
    """Returns the ConfigDict of a run.

    Args:
      run: the run.
      data: folder of the only data set, in both orders; "" is the mixture of the SODA suite.
    """
    from ml_collections import ConfigDict

    from soda_jax.configs import base

    config = base.default()
    config.update(settings_of(run))
    sources = {"data": base.source(data, 1.0)} if data else base.suite_sources()
    config.data.sources = ConfigDict(sources)
    return config


def config_text(run: PlannedRun, data: str = "") -> str:
    """Returns a config file whose `get_config()` is `config_of(run, data)`."""
    sources = f'{{"data": base.source({data!r}, 1.0)}}' if data else "base.suite_sources()"
    lines = [
        f'"""IsoFLOP run of {run.budget:g} FLOPs at width {run.shape.width}, from soda scaling plan."""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from soda_jax.configs import base",
        "",
        "",
        "def get_config():",
        "    config = base.default()",
    ]
    for name, value in settings_of(run).items():
        if isinstance(value, dict):
            arguments = ", ".join(f"{key}={one!r}" for key, one in value.items())
            lines.append(f"    config.{name}.update({arguments})")
        else:
            lines.append(f"    config.{name} = {value!r}")
    lines += [f"    config.data.sources = ConfigDict({sources})", "    return config", ""]
    return "\n".join(lines)
