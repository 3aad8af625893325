"""The loss surface L(N, D) = E + A / N^α + B / D^β, fitted by variable projection.

For given exponents the loss is linear in E, A and B, so these follow from a small least-squares
problem with E, A, B ≥ 0, and only (α, β) is searched (arXiv 2603.22339). The objective is the mean
Huber function of the residuals in nats; its minimum is found by reweighting least squares. All
arrays have a leading axis of independent problems (bootstrap draws), which are solved together.

Units: N in millions of parameters, D in billions of tokens, losses in nats.
"""

import dataclasses
import math

import numpy as np

DELTA = 1e-3  # nats
EXPONENTS = (0.03, 2.5)  # range of the search
_GRID = 32  # points of each exponent
_STARTS = 12  # starts of a single fit
_STEPS = (1.0, 0.5, 0.1, 0.01)  # fractions of a Gauss-Newton step that are tried
_SUBSETS = (  # which of E, A and B are not 0, if not all
    (True, True, False), (True, False, True), (False, True, True),
    (True, False, False), (False, True, False), (False, False, True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Surface:
    """Coefficients of a loss surface.

    Attributes:
      alpha, beta: exponents of N and D.
      E: irreducible loss in nats.
      A, B: coefficients for N in millions and D in billions.
      huber: mean Huber function of the residuals of the fit (delta 1e-3, nats); NaN if unknown.
    """

    alpha: float
    beta: float
    E: float
    A: float
    B: float
    huber: float = float("nan")

    def loss(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns the loss in nats for counts of parameters and tokens."""
        return losses_of(np.array(self.coefficients), np.asarray(params), np.asarray(tokens))

    def measured(self, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> "Surface":
        """Returns the surface with `huber` computed for measured losses `[runs]`."""
        value = huber(loss - self.loss(params, tokens)).mean()
        return dataclasses.replace(self, huber=float(value))

    def exponents(self, power: float = 1.0) -> tuple[float, float]:
        """Returns (a, b) of N* ∝ C^a and D* ∝ C^b if C ∝ N^power · D; NaN without an optimum."""
        if min(self.A, self.B, self.alpha, self.beta, power) <= 0:
            return math.nan, math.nan
        total = self.alpha + power * self.beta
        return self.beta / total, self.alpha / total

    def optimum(
        self, constant: float | np.ndarray, power: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (N*, D*), the counts with the lowest loss on the curve N^power · D = constant.

        NaN without an optimum, that is, if A, B or the power is not above 0.
        """
        return optima(np.array(self.coefficients), constant, power)

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """α, β, E, A and B."""
        return self.alpha, self.beta, self.E, self.A, self.B


def losses_of(coefficients: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns the losses of several surfaces in nats.

    Args:
      coefficients: α, β, E, A and B, `[..., 5]`.
      params, tokens: plain counts, `[...]`.
    """
    alpha, beta, e, a, b = np.moveaxis(np.asarray(coefficients, float), -1, 0)
    with np.errstate(over="ignore"):
        return e + a * (params / 1e6) ** -alpha + b * (tokens / 1e9) ** -beta


def optima(
    coefficients: np.ndarray, constant: float | np.ndarray, power: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N*, D*) of several surfaces, the counts with the lowest loss on N^power · D = constant.

    The derivative of E + A · N^-α + B · D^-β along the curve is 0 if α · A · N^-α = power · β · B · D^-β.

    Args:
      coefficients: α, β, E, A and B, `[..., 5]`, for N in millions and D in billions.
      constant: value of N^power · D for plain counts, `[...]`.
      power: exponent of N in the FLOPs.
    """
    alpha, beta, _, a, b = np.moveaxis(np.asarray(coefficients, float), -1, 0)
    scale = constant / (1e6**power * 1e9)
    with np.errstate(all="ignore"):
        ratio = alpha * a / (beta * power * b)
        params = (ratio * scale**beta) ** (1 / (alpha + power * beta))
        tokens = scale * params**-power
        known = (a > 0) & (b > 0) & (alpha > 0) & (beta > 0) & (power > 0) & np.isfinite(tokens)
    return np.where(known, params * 1e6, np.nan), np.where(known, tokens * 1e9, np.nan)


def huber(residuals: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Returns the Huber function: r²/2 up to `delta`, then delta · (|r| − delta/2)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def fit_surface(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> Surface:
    """Returns the surface with the smallest mean Huber function.

    Args:
      params: parameters of each run, `[runs]`.
      tokens: tokens of each run, `[runs]`.
      loss: measured losses in nats, `[runs]`.
    """
    return fit_parts(params, tokens, loss, np.ones((1, len(loss)), bool))[0]


def fit_parts(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, used: np.ndarray
) -> list[Surface]:
    """Returns the best surface for each of several parts of the runs, as `fit_surface` of these runs.

    Args:
      params: parameters of each run, `[runs]`.
      tokens: tokens of each run, `[runs]`.
      loss: measured losses in nats, `[runs]`.
      used: the runs of each part, bool `[parts, runs]`.
    """
    counts = used.astype(float)
    losses = np.broadcast_to(loss, counts.shape)
    starts = _grid_starts(params, tokens, losses, counts, _STARTS)
    losses, counts = np.repeat(losses, _STARTS, 0), np.repeat(counts, _STARTS, 0)
    found, values = _descend(params, tokens, losses, counts, starts.reshape(-1, 2), rounds=400)
    found, values = found.reshape(len(used), _STARTS, 5), values.reshape(len(used), _STARTS)
    best = [row[number] for row, number in zip(found, values.argmin(1), strict=True)]
    return [
        Surface(*map(float, (*row, value))) for row, value in zip(best, values.min(1), strict=True)
    ]


def fit_surfaces(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    counts: np.ndarray,
    near: Surface,
) -> np.ndarray:
    """Returns α, β, E, A and B of several problems with the same models, f64 `[draws, 5]`.

    Args:
      params: parameters of each run, `[runs]`.
      tokens: tokens of each run, `[runs]`.
      losses: losses in nats, `[draws, runs]`.
      counts: weight of each run, at least 0, `[draws, runs]`.
      near: a further start of each search.
    """
    starts = _grid_starts(params, tokens, losses, counts, 1)[:, 0]
    nearby = np.broadcast_to([near.alpha, near.beta], starts.shape)
    table = (params, tokens)
    found, values = _descend(*table, losses, counts, starts, rounds=12)
    other, its_values = _descend(*table, losses, counts, nearby, rounds=12)
    chosen = np.where((values <= its_values)[:, None], found[:, :2], other[:, :2])
    return _descend(*table, losses, counts, chosen, rounds=60)[0]


def _columns(params: np.ndarray, tokens: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Returns 1, N^-α and D^-β, `[problems, 3, runs]`, for exponents `[problems, 2]`."""
    first = np.exp(-exponents[:, :1] * np.log(params / 1e6))
    second = np.exp(-exponents[:, 1:] * np.log(tokens / 1e9))
    return np.stack([np.ones_like(first), first, second], 1)


def _grid_starts(
    params: np.ndarray, tokens: np.ndarray, losses: np.ndarray, counts: np.ndarray, number: int
) -> np.ndarray:
    """Returns the exponents with the smallest sum of squares on a grid, `[draws, number, 2]`."""
    line = np.geomspace(*EXPONENTS, _GRID)
    pairs = np.stack([axis.ravel() for axis in np.meshgrid(line, line, indexing="ij")], 1)
    columns = _columns(params, tokens, pairs)
    products = columns[:, :, None] * columns[:, None]  # [grid, 3, 3, runs]
    starts = []
    for loss, count in zip(losses, counts, strict=True):
        _, gain = _non_negative(products @ count, columns @ (count * loss))
        starts.append(pairs[np.argsort(-gain, kind="stable")[:number]])
    return np.array(starts)


def _non_negative(gram: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves least squares in three unknowns that are ≥ 0, from normal equations.

    If a result without this limit is negative, tries each set of unknowns that may differ from 0, so the
    result is exact.

    Args:
      gram: products of the columns with each other, `[problems, 3, 3]`.
      right: products of the columns with the measured values, `[problems, 3]`.

    Returns:
      The solution `[problems, 3]`, and how much it reduces the sum of squares `[problems]`.
    """
    scale = np.sqrt(np.einsum("pii->pi", gram))
    gram = gram / (scale[:, :, None] * scale[:, None, :])
    right = right / scale
    best = _solve(gram, right)
    limited = np.flatnonzero((best < 0).any(1))
    best[limited] = _limited(gram[limited], right[limited])
    return best / scale, np.einsum("pi,pi->p", best, right)


def _limited(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the solutions of problems in which at least one unknown is 0."""
    best, gain = np.zeros_like(right), np.zeros(len(right))
    for used in _SUBSETS:
        index = np.flatnonzero(used)
        solved = np.zeros_like(right)
        solved[:, index] = _solve(gram[:, index[:, None], index], right[:, index])
        reduced = np.einsum("pi,pi->p", solved, right)
        better = (solved >= 0).all(1) & (reduced > gain)
        best[better], gain[better] = solved[better], reduced[better]
    return best


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the solutions of symmetric systems of up to 3 unknowns by Cramer's rule.

    A singular system gives −1, which is never chosen.
    """
    size = right.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        if size == 1:
            solved = right / matrix[:, 0]
        elif size == 2:
            (a, b), d = matrix[:, 0].T, matrix[:, 1, 1]
            x, y = right.T
            solved = np.stack([d * x - b * y, a * y - b * x], 1) / (a * d - b * b)[:, None]
        else:
            (a, b, c), (d, e), f = matrix[:, 0].T, matrix[:, 1, 1:].T, matrix[:, 2, 2]
            x, y, z = right.T
            # The cofactors of a symmetric matrix.
            aa, ab, ac = d * f - e * e, c * e - b * f, b * e - c * d
            bb, bc, cc = a * f - c * c, b * c - a * e, a * d - b * b
            solved = np.stack(
                [aa * x + ab * y + ac * z, ab * x + bb * y + bc * z, ac * x + bc * y + cc * z], 1
            )
            solved /= (a * aa + b * ab + c * ac)[:, None]
    return np.where(np.isfinite(solved), solved, -1.0)


def _descend(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    counts: np.ndarray,
    starts: np.ndarray,
    rounds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimizes the mean Huber function of each problem from one start.

    A round weights the runs by min(1, delta / |residual|), takes the best of several fractions of the
    Gauss-Newton step in all five coefficients, and projects E, A and B again at the new exponents.

    Returns:
      α, β, E, A, B `[problems, 5]` and the mean Huber function `[problems]`.
    """
    total = counts.sum(1)

    def project(exponents: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        inside = np.clip(exponents, *EXPONENTS)
        linear, residuals = _project(_columns(params, tokens, inside), losses, weights)
        values = (counts * huber(residuals)).sum(1) / total
        return np.concatenate([inside, linear], 1), residuals, values

    best, residuals, values = project(starts, counts)
    for _ in range(rounds):
        weights = counts * DELTA / np.maximum(np.abs(residuals), DELTA)
        step = _newton(params, tokens, best, residuals, weights)
        before, exponents = values, best[:, :2]
        for fraction in _STEPS:
            found, its_residuals, its_values = project(exponents + fraction * step, weights)
            better = its_values < values
            values = np.where(better, its_values, values)
            best = np.where(better[:, None], found, best)
            residuals = np.where(better[:, None], its_residuals, residuals)
        if np.all(before - values <= 1e-10 * before):
            break
    return best, values


def _project(
    columns: np.ndarray, losses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best E, A, B ≥ 0 for `columns`, `[problems, 3]`, and the residuals."""
    weighted = columns * weights[:, None]
    gram = weighted @ columns.transpose(0, 2, 1)
    linear, residuals = np.zeros((len(losses), 3)), losses
    # The second pass refines the first, because normal equations lose half of the digits.
    for _ in range(2):
        right = np.einsum("pir,pr->pi", weighted, residuals) + np.einsum("pij,pj->pi", gram, linear)
        linear, _ = _non_negative(gram, right)
        residuals = losses - np.einsum("pi,pir->pr", linear, columns)
    return linear, residuals


def _derivatives(params: np.ndarray, tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the derivatives of the loss by α, β, E, A and B, `[problems, 5, runs]`."""
    columns = _columns(params, tokens, values[:, :2])
    by_alpha = -values[:, 3:4] * columns[:, 1] * np.log(params / 1e6)
    by_beta = -values[:, 4:] * columns[:, 2] * np.log(tokens / 1e9)
    return np.concatenate([np.stack([by_alpha, by_beta], 1), columns], 1)


def _newton(
    params: np.ndarray,
    tokens: np.ndarray,
    values: np.ndarray,
    residuals: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Returns the Gauss-Newton step of the exponents, `[problems, 2]`, at most 0.3 in each."""
    derivatives = _derivatives(params, tokens, values)
    scale = np.sqrt((weights[:, None] * derivatives**2).sum(2, keepdims=True))
    scale = np.maximum(scale, 1e-300)  # 0 if A or B is 0
    weighted = derivatives / scale * weights[:, None]
    gram = weighted @ (derivatives / scale).transpose(0, 2, 1) + 1e-11 * np.eye(5)
    right = np.einsum("pir,pr->pi", weighted, residuals)
    step = np.linalg.solve(gram, right[..., None])[..., 0] / scale[..., 0]
    return np.clip(step[:, :2], -0.3, 0.3)
