"""What all runs of an IsoFLOP study share; `soda scaling run` adds sizes, steps and optimizer.

    soda scaling plan --out=plan.csv
    soda scaling run plan.csv --workdir=study

Data and precision are those of the SODA suite.
"""

from ml_collections import ConfigDict

from soda_jax.configs import base


def get_config():
    config = base.default()
    config.model.compute_dtype = "bfloat16"
    config.data.sources = ConfigDict(base.suite_sources())
    config.checkpoint.keep = 1
    config.evaluate.every_steps = 0  # only after the last step
    return config
