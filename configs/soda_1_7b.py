"""SODA-1.7B with the paper's recipe: 500B tokens, 512 x 4096 tokens per step.

    soda train --config=configs/soda_1_7b.py --workdir=runs/soda-1_7b \
        --config.checkpoint.directory=gs://…/soda-1_7b

Expected (paper): ASR WER 7.0, TTS WER 6.9, SALMon 70.6 after 238,419 steps on a v5p-128.
"""

from soda_jax.configs import base


def get_config():
    return base.suite(
        hidden_size=2048,
        num_layers=28,
        intermediate_size=6144,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
    )
