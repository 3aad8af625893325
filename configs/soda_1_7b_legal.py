"""SODA-1.7B with a head over legal ids (docs/legal-head.md); all other settings are those of soda_1_7b.py."""

from soda_jax.configs import soda_1_7b


def get_config():
    config = soda_1_7b.get_config()
    # A prime number, so that all codebooks are sampled. It is not yet chosen by an experiment.
    config.model.update(head="legal", full_every=17)
    return config
