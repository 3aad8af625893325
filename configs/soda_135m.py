"""SODA-135M with the paper's recipe: 500B tokens, 512 x 4096 tokens per step.

    soda train --config=configs/soda_135m.py --workdir=runs/soda-135m \
        --config.checkpoint.directory=gs://…/soda-135m

Expected (paper): ASR WER 28.1, TTS WER 11.2, SALMon 70.0 after 238,419 steps on a v5p-32.
"""

from soda_jax.configs import base


def get_config():
    config = base.suite(
        hidden_size=512,
        num_layers=15,
        intermediate_size=1792,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
    )
    # The paper's code computes the learning rate with 1024, not with this model's hidden size.
    config.optimizer.peak_lr = base.suite_learning_rate(hidden_size=1024)
    return config
