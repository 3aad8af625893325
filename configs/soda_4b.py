"""SODA-4B on the paper's recipe: 500B tokens, 512 x 4096 tokens a step.

    soda train --config=configs/soda_4b.py --workdir=runs/soda-4b \
        --config.checkpoint.directory=gs://…/soda-4b

Expected (paper): ASR WER 5.0, TTS WER 6.1, SALMon 70.4 after 238,419 steps on a v5p-256.
"""

from soda_jax.configs import base


def get_config():
    return base.suite(width=2560, layers=36, mlp_width=9728, heads=32, kv_heads=8, head_dim=128)
