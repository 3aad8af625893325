"""SODA-4B with the paper's recipe: 500B tokens, 512 x 4096 tokens per step.

    soda train --config=configs/soda_4b.py --workdir=runs/soda-4b \
        --config.checkpoint.directory=gs://…/soda-4b

Expected (paper): ASR WER 5.0, TTS WER 6.1, SALMon 70.4 after 238,419 steps on a v5p-256.
"""

from soda_jax.configs import base


def get_config():
    return base.suite(
        hidden_size=2560,
        num_layers=36,
        intermediate_size=9728,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    )
