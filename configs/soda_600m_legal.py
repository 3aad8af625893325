"""SODA-600M with a head over legal ids (docs/legal-head.md); all other settings are those of soda_600m.py."""

from soda_jax.configs import soda_600m


def get_config():
    config = soda_600m.get_config()
    # Odd, so that the samples of an utterance are spread over all codebooks. docs/legal-head.md has the experiment.
    config.model.update(head="legal", full_every=17)
    return config
