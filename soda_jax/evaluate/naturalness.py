"""Predicts listeners' opinion of speech without a reference: DNSMOS (arXiv 2202.05995, 2110.01763)."""

import numpy as np

from soda_jax.errors import UserError

NAME = "DNSMOS (speechmos)"
_RATE = 16_000


class Dnsmos:
    """DNSMOS P.835 and P.808 of the package speechmos: opinion scores from 1 to 5."""

    def __init__(self) -> None:
        """Loads the package; raises UserError if the `eval` extra is not installed."""
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'soda-jax[eval]'") from None
        self._run = dnsmos.run

    def __call__(self, audio: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Returns overall, signal, background and p808 of f32 mono `[samples]`.

        A clip below 9.01 s is repeated to this length, as speechmos does.
        """
        import soxr

        at_rate = soxr.resample(np.asarray(audio, np.float32), sample_rate, _RATE)
        scores = self._run(np.clip(at_rate, -1.0, 1.0), _RATE)
        names = {
            "overall": "ovrl_mos",
            "signal": "sig_mos",
            "background": "bak_mos",
            "p808": "p808_mos",
        }
        return {name: float(scores[key]) for name, key in names.items()}
