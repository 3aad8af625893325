"""SODA-4B with a head over legal ids (docs/legal-head.md); all other settings are those of soda_4b.py."""

from soda_jax.configs import soda_4b


def get_config():
    config = soda_4b.get_config()
    # Odd, so that the samples of an utterance are spread over all codebooks. docs/legal-head.md has the experiment.
    config.model.update(head="legal", full_every=17)
    return config
