"""The config of a planned run, for `soda train`, as a file, and as a job of a study."""

from collections.abc import Iterable, Sequence
from typing import Any

from soda_jax.errors import UserError
from soda_jax.scaling.grid import PlannedRun
from soda_jax.scaling.study import Job
from soda_jax.schema import RunConfig, run_config, to_dict

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
_RECIPE = (*(f"optimizer.{name}" for name in _OPTIMIZER), "mesh.data", "mesh.fsdp")


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


def job_of(run: PlannedRun, base: Any, kept: Iterable[str] = ()) -> Job:
    """Returns a planned run as a job of a study.

    Args:
      run: the run.
      base: ConfigDict with the data, the evaluation and everything else that the plan does not decide.
      kept: dotted names of settings of the recipe that keep their value in `base`. Those whose value is not
        the default of the schema are kept too.
    """
    kept = {*kept, *_changed(base)}
    config = base.copy_and_resolve_references()
    for section, value in settings_of(run).items():
        values = value if isinstance(value, dict) else {"": value}
        for name, setting in values.items():
            dotted = f"{section}.{name}".rstrip(".")
            if dotted not in kept:
                config.update_from_flattened_dict({dotted: setting})
    return Job(run.name, run_config(config), run.flops, run.row(), run.vocabulary)


def _changed(base: Any) -> list[str]:
    """Returns the dotted names of settings of the recipe that `base` changes from their defaults."""
    default = to_dict(RunConfig())
    names = (dotted.split(".") for dotted in _RECIPE)
    return [
        f"{section}.{name}"
        for section, name in names
        if base[section][name] != default[section][name]
    ]


def check_overrides(run: PlannedRun, names: Sequence[str]) -> None:
    """Raises UserError if a setting that the plan decides is in `names`, dotted names."""
    for section, value in settings_of(run).items():
        for name in value if isinstance(value, dict) else ("",):
            dotted = f"{section}.{name}".rstrip(".")
            if dotted in names and dotted not in _RECIPE:
                raise UserError(
                    f"--config.{dotted}: the plan decides this setting; write another plan with soda "
                    "scaling plan"
                )


def check_base(base: Any) -> None:
    """Checks the settings that `soda scaling run` does not use.

    Raises:
      UserError: if evaluators or exports are configured, which only `soda train` runs.
    """
    for name, set_to, command in (
        ("evaluate.tasks", base.evaluate.tasks, "evaluate"),
        ("export.every_steps", base.export.every_steps, "convert to-hf"),
    ):
        if set_to:
            raise UserError(
                f"--config.{name}={set_to} has no effect in a study, which measures only the held-out loss; "
                f"remove it and run soda {command} on the workdirs of the runs"
            )


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
