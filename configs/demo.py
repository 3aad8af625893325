"""The demo: a toy model of spoken digits and short commands, trained in minutes on two CPU cores.

    soda demo                                                        # all steps, with a report
    soda train --config=configs/demo.py --workdir=demo/run           # only the training

Expected: held-out loss below the unigram and the bigram baseline for every class of token.
"""

from ml_collections import ConfigDict

from soda_jax.configs import base


def get_config():
    config = base.default()
    config.steps = 1000
    config.batch_size = 8
    config.model.update(
        num_layers=4,
        hidden_size=192,
        intermediate_size=512,
        num_heads=4,
        num_kv_heads=2,
        head_dim=48,
        remat="none",
        unroll=4,
    )
    config.model.rope.update(theta=10_000.0, factor=1.0)
    config.data.sequence_length = 256
    config.data.sources = ConfigDict(
        {
            "speech": base.source("demo/speech", 0.65),
            # Text and semantic tokens only; see configs/numbers.py.
            "semantic": base.source("demo/speech", 0.30, codebooks=1),
            "text": base.source("demo/text", 0.05, order="text_first", composition="text"),
        }
    )
    config.optimizer.update(peak_lr=4e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05)
    config.checkpoint.update(every_steps=250, every_minutes=10.0, keep=2)
    config.evaluate.update(every_steps=200, batches=8)
    return config
