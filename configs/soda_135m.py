"""SODA-135M on the paper's recipe: 500B tokens, 512 x 4096 tokens a step.

    soda train --config=configs/soda_135m.py --workdir=runs/soda-135m \
        --config.checkpoint.directory=gs://…/soda-135m

Expected (paper): ASR WER 28.1, TTS WER 11.2, SALMon 70.0 after 238,419 steps on a v5p-32.
"""

from soda_jax.configs import base


def get_config():
    config = base.suite(width=512, layers=15, mlp_width=1792, heads=8, kv_heads=8, head_dim=64)
    config.optimizer.peak = base.suite_learning_rate(width=1024)  # as the paper's code, not 512
    return config
