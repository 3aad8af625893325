"""SODA-600M with the paper's recipe: 500B tokens, 512 x 4096 tokens per step.

    soda train --config=configs/soda_600m.py --workdir=runs/soda-600m \
        --config.checkpoint.directory=gs://…/soda-600m

Expected (paper): ASR WER 10.2, TTS WER 7.6, SALMon 70.1 after 238,419 steps on a v5p-64.
"""

from soda_jax.configs import base


def get_config():
    return base.suite(
        hidden_size=1024,
        num_layers=28,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
    )
