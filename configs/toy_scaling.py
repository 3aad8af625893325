"""A toy scaling study of the demo's speech; see docs/scaling.md.

    soda synth --output=scaling/corpus --task=demo --clips=32000 --texts=8000
    soda codec fit scaling/corpus --output=scaling/codec --codebook_size=256 --max_minutes=20
    soda synth --output=scaling/corpus --task=demo --clips=64000 --texts=8000
    soda tokenize --input=scaling/corpus/manifest.jsonl --output=scaling/speech \
        --codec=mel:scaling/codec --validation_fraction=0.02
    soda scaling plan --rules=toy --vocabulary=2310 --sequence_length=256 --out=scaling/plan.csv
    soda scaling run scaling/plan.csv --config=configs/toy_scaling.py --workdir=scaling/study

The plan replaces sizes, steps, batch and the recipe of the optimizer.
"""

from ml_collections import ConfigDict

from soda_jax.configs import base


def get_config():
    config = base.default()
    config.model.update(compute_dtype="float32", remat="none", unroll=8)
    config.model.rope.update(theta=10_000.0, factor=1.0)
    config.data.sequence_length = 256
    config.data.sources = ConfigDict({"speech": base.source("scaling/speech", 1.0)})
    config.checkpoint.update(every_steps=0, every_minutes=2.0, keep=1)
    config.evaluate.update(every_steps=0, batches=0)
    config.log.tensorboard = False
    return config
