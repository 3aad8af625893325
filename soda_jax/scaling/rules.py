"""Rules of an IsoFLOP study: which models to train at a budget, and with which hyperparameters.

`Rules` groups small functions. Rules of your own are a function in a file for `soda --plugin=FILE`:

    @SCALING_RULES.register("wide_batch")
    def wide_batch():
        return dataclasses.replace(soda(), batch=lambda budget, flops, width, sequence_length: 256)
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from soda_jax.errors import UserError
from soda_jax.registry import SCALING_RULES
from soda_jax.scaling.shape import Shape

BUDGETS = (3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20)  # 3 × forward FLOPs

# Widths that the paper added by hand, by budget.
_ADDED = {9e19: (2048,), 1.8e20: (2048, 2304), 3e20: (2048, 2304, 2816, 3072)}
_STEPS = 2**16  # the batch is chosen so that a run takes at most about this many steps
_MAX_LR = 0.01


def widths(budget: float) -> Sequence[int]:
    """Returns the candidate widths: 128 to 2048 in steps of 128, or of 256 above 2.7e19 FLOPs."""
    step = 128 if budget / 3 <= 9e18 else 256
    added = [more for known, more in _ADDED.items() if math.isclose(known, budget, rel_tol=1e-6)]
    return sorted({*range(128, 2049, step), *(width for more in added for width in more)})


def shape(width: int) -> Shape:
    """Returns the model of a width: ff = 4d, heads of 128, d / (64 + 4·log2(d) − 7) layers."""
    layers = max(1, round(width / (64 + 4 * math.log2(width) - 7)))
    return Shape(width, layers, max(1, width // 128), 128, 4 * width)


def peak_lr(width: int, batch: int) -> float:
    """Returns the learning rate 0.33 · √batch / width."""
    return 0.33 * math.sqrt(batch) / width


def beta2(batch: int) -> float:
    """Returns Adam's β2 = 0.98^(batch / 128), the same decay per sequence for every batch size."""
    return 0.98 ** (batch / 128)


def batch(
    budget: float,
    flops_per_token: float,
    width: int,
    sequence_length: int,
    max_lr: float = _MAX_LR,
) -> int:
    """Returns the batch size in windows: a power of two, for about 2^15 to 2^16 steps.

    It is halved until `peak_lr` is at most `max_lr`.

    Args:
      budget: training FLOPs, 3 × forward.
      flops_per_token: FLOPs of the forward pass per token.
      width: width of the model.
      sequence_length: tokens per window.
      max_lr: limit of the learning rate; infinity for none.
    """
    windows = budget / 3 / (flops_per_token * _STEPS * sequence_length)
    size = 2 ** math.ceil(math.log2(windows)) if windows > 1 else 1
    while size > 1 and peak_lr(width, size) > max_lr:
        size //= 2
    return size


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of a study; `dataclasses.replace` changes one of them.

    Attributes:
      budgets: the budgets of the study, training FLOPs.
      widths: budget -> candidate widths.
      shape: width -> sizes of the model.
      batch: (budget, forward FLOPs per token, width, sequence length) -> windows per step.
      peak_lr: (width, batch) -> learning rate after warmup.
      beta2: batch -> decay of Adam's second moment.
      min_batch: runs with a smaller batch are left out.
      max_steps: runs of this many steps or more are left out.
      tolerance: runs that miss the budget by more than this fraction are left out.
    """

    budgets: Sequence[float] = BUDGETS
    widths: Callable[[float], Sequence[int]] = widths
    shape: Callable[[int], Shape] = shape
    batch: Callable[[float, float, int, int], int] = batch
    peak_lr: Callable[[int, int], float] = peak_lr
    beta2: Callable[[int], float] = beta2
    min_batch: int = 8
    max_steps: int = 400_000
    tolerance: float = 0.01

    def shape_of(self, width: int) -> Shape:
        """Returns the sizes of the model of a width.

        Raises:
          UserError: if `shape` fails or does not return a `Shape`.
        """
        with errors_of_rules(f"shape({width})"):
            shape = self.shape(width)
            if not isinstance(shape, Shape):
                raise TypeError(f"it returns {shape!r}, not a Shape")
        return shape


@contextlib.contextmanager
def errors_of_rules(what: str) -> Iterator[None]:
    """Converts an exception of the functions of a user into a UserError.

    Args:
      what: what is computed, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--rules: {what} failed with {type(error).__name__}: {error}; correct the rules in the file of "
            "--plugin"
        ) from None


def make_rules(name: str) -> Rules:
    """Returns the registered rules of a name.

    Raises:
      UserError: if there are none, or the function fails or does not return `Rules`.
    """
    make = SCALING_RULES.get(name, "--rules")
    with errors_of_rules(f"{name}()"):
        rules = make()
        if not isinstance(rules, Rules):
            raise TypeError(f"it returns {rules!r}, not Rules")
    return rules


@SCALING_RULES.register("soda")
def soda() -> Rules:
    """Returns the rules of the paper (SODA, IsoFLOP section)."""
    return Rules()


_TOY_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TOY_BUDGETS = tuple(2 * 10 ** (11 + half / 2) for half in range(5))
_TOY_LAYERS = 2
_TOY_MAX_LR = 0.03


def _toy_widths(budget: float) -> Sequence[int]:
    """Returns five widths, which grow by one step of the list with each half decade."""
    first = max(0, round(2 * math.log10(budget / _TOY_BUDGETS[0])))
    return _TOY_WIDTHS[first : first + 5]


def _toy_shape(width: int) -> Shape:
    heads = max(1, width // 32)
    return Shape(width, _TOY_LAYERS, heads, width // heads, 4 * width)


def _toy_batch(budget: float, flops_per_token: float, width: int, sequence_length: int) -> int:
    """Returns about √windows / 16, a power of two: both batch and steps grow with the budget."""
    windows = budget / 3 / (flops_per_token * sequence_length)
    return 2 ** max(0, round(math.log2(math.sqrt(windows) / 16)))


@SCALING_RULES.register("toy")
def toy() -> Rules:
    """Returns rules for a toy study of short windows that two CPU cores finish in about an hour.

    All models have two layers: rounding the depth of such small models to whole layers, or leaving one
    of them with a single layer, makes kinks in the loss over the size. The learning rate is that of the paper with a
    higher limit. Its β2 is meant for long runs; 0.995 lowers the loss at 1e12 FLOPs by 0.03 to 0.11
    nats compared with 0.98, more for small batches.
    """
    return Rules(
        budgets=_TOY_BUDGETS,
        widths=_toy_widths,
        shape=_toy_shape,
        batch=_toy_batch,
        peak_lr=lambda width, batch: min(_TOY_MAX_LR, peak_lr(width, batch)),
        beta2=lambda batch: 0.995,
        min_batch=1,
    )
