"""Implements residual vector quantization: each codebook quantizes the remaining error."""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np

from soda_jax.errors import UserError
from soda_jax.progress import track

_KMEANS_ROUNDS = 25
_KMEANS_TOLERANCE = 1e-3  # relative to the variance; more rounds change the centers but not the WER


@dataclass(frozen=True)
class ResidualQuantizer:
    """Codebooks for the leading principal components of a vector.

    Attributes:
      mean: mean of the vectors, float32 `[dims]`.
      basis: float32 `[dims, components]`, orthonormal columns, largest variance first. In the mel
        codec (96 of 320 components) the projection hardly changes the distances in k-means and
        saves two thirds of the arithmetic.
      codebooks: float32 `[size_k, components]` for each codebook k.
    """

    mean: np.ndarray
    basis: np.ndarray
    codebooks: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, vectors: np.ndarray, sizes: tuple[int, ...], components: int, seed: int) -> Self:
        """Fits the basis by PCA, then each codebook by k-means.

        Args:
          vectors: float32 `[n, dims]`.
          sizes: number of entries of each codebook.
          components: number of principal components, at most dims.
          seed: seed of the k-means; the same vectors and seed produce the same codebooks.

        Raises:
          UserError: if there are fewer vectors than entries in a codebook.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        if len(vectors) < max(sizes):
            raise UserError(
                f"{len(vectors)} frames of audio are too few for a codebook of {max(sizes)} "
                "entries: give more audio or smaller codebooks"
            )
        # With several threads, the summation order and therefore the last bits would vary, and the
        # many small products would be several times slower on a busy machine.
        with threadpool_limits(1), warnings.catch_warnings():
            mean = vectors.mean(axis=0)
            _, axes = np.linalg.eigh(np.cov(vectors, rowvar=False))
            basis = np.ascontiguousarray(axes[:, ::-1][:, :components], np.float32)
            residual = (vectors - mean) @ basis
            codebooks = []
            # With fewer distinct vectors than entries (digital silence), some entries stay unused.
            warnings.simplefilter("ignore", ConvergenceWarning)
            for level, size in enumerate(track(sizes, "fitting codebooks")):
                kmeans = KMeans(
                    size,
                    n_init=1,
                    max_iter=_KMEANS_ROUNDS,
                    tol=_KMEANS_TOLERANCE,
                    random_state=seed + level,
                ).fit(residual)
                codebooks.append(kmeans.cluster_centers_.astype(np.float32))
                residual = residual - codebooks[-1][kmeans.labels_]
        return cls(mean.astype(np.float32), basis, tuple(codebooks))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Quantizes float32 `[n, dims]` to the nearest entries, uint16 `[n, codebooks]`."""
        residual = (vectors - self.mean) @ self.basis
        codes = np.empty((len(vectors), len(self.codebooks)), np.uint16)
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = entries = nearest(residual, codebook)
            residual = residual - codebook[entries]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Returns float32 vectors `[n, dims]` for codes `[n, m]`, m ≤ codebooks."""
        total = np.zeros((len(codes), self.basis.shape[1]), np.float32)
        for level in range(codes.shape[1]):
            total += self.codebooks[level][codes[:, level]]
        return total @ self.basis.T + self.mean


def nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest entry of a codebook for each vector, int64 `[n]`.

    Args:
      vectors: float32 `[n, dims]`.
      codebook: float32 `[size, dims]`.
    """
    # |v - c|² without |v|², which is the same for every entry.
    return ((codebook**2).sum(axis=1) - 2 * (vectors @ codebook.T)).argmin(axis=1)
