"""The runs of an IsoFLOP study, and the table that contains them."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.scaling.rules import Rules, errors_of_rules
from soda_jax.scaling.shape import Shape

COLUMNS = (
    "budget", "width", "layers", "heads", "d_ff", "batch", "steps", "lr", "beta2", "params_total",
    "params_one_head", "params_non_embedding", "tokens", "flops",
)  # fmt: skip
_MAX_WIDTH = 1_000_000
_FLOATS = ("budget", "lr", "beta2", "flops")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
      budget: training FLOPs of the IsoFLOP curve that the run belongs to, 3 × forward.
      shape: sizes of the model.
      batch: windows per step.
      steps: optimizer steps.
      lr: learning rate after warmup.
      beta2: decay of Adam's second moment.
      vocabulary: number of ids.
      sequence_length: tokens per window.
    """

    budget: float
    shape: Shape
    batch: int
    steps: int
    lr: float
    beta2: float
    vocabulary: int
    sequence_length: int

    @property
    def name(self) -> str:
        """Name of the run, such as isoflop_3e18_d768; it is unique within a study."""
        return f"isoflop_{self.budget:g}_d{self.shape.width}".replace("+", "")

    @property
    def tokens(self) -> int:
        """Number of tokens of the run."""
        return self.batch * self.steps * self.sequence_length

    @property
    def flops(self) -> float:
        """Training FLOPs of the run, 3 × forward; differs from `budget` because steps are whole."""
        forward = self.shape.forward_flops_per_token(self.vocabulary, self.sequence_length)
        return 3 * forward * self.tokens

    def row(self) -> dict[str, Any]:
        """Returns the values of `COLUMNS`."""
        shape = self.shape
        values = (
            *(self.budget, shape.width, shape.layers, shape.heads, shape.d_ff),
            *(self.batch, self.steps, self.lr, self.beta2),
            *(shape.parameters(self.vocabulary), shape.parameters(self.vocabulary, matrices=1)),
            *(shape.non_embedding_parameters, self.tokens, self.flops),
        )
        return dict(zip(COLUMNS, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a study.

    Attributes:
      runs: the runs by budget, then by width.
      left_out: a line for each candidate that the rules leave out, with the reason.
    """

    runs: tuple[PlannedRun, ...]
    left_out: tuple[str, ...]


def plan_runs(
    rules: Rules,
    budgets: Iterable[float],
    vocabulary: int,
    sequence_length: int,
    widths: Sequence[int] = (),
) -> Plan:
    """Returns the runs of a study.

    Args:
      rules: sizes and hyperparameters.
      budgets: training FLOPs, 3 × forward.
      vocabulary: number of ids.
      sequence_length: tokens per window.
      widths: candidate widths for every budget; empty uses those of `rules`.

    Raises:
      UserError: if no candidate fits the rules, a rule fails, or a width is above 1,000,000.
    """
    if too_wide := [width for width in widths if not 1 <= width <= _MAX_WIDTH]:
        raise UserError(f"--widths: {too_wide[0]:.3g} must be from 1 to {_MAX_WIDTH:,}")
    runs, left_out = [], []
    for budget in sorted(set(budgets)):
        with errors_of_rules(f"widths({budget:g})"):
            candidates = sorted(set(widths)) or list(rules.widths(budget))
        for width in candidates:
            run = _run(rules, budget, width, vocabulary, sequence_length)
            if reason := _reason(rules, run):
                left_out.append(f"budget {budget:g}, width {width}: {reason}")
            else:
                runs.append(run)
    if not runs:
        raise UserError(
            f"no run fits the rules; {left_out[0] if left_out else 'there are no candidates'}; "
            "change --budgets, --widths or --rules"
        )
    return Plan(tuple(runs), tuple(left_out))


def _run(rules: Rules, budget: float, width: int, vocabulary: int, length: int) -> PlannedRun:
    shape = rules.shape_of(width)
    with errors_of_rules(f"the run of {budget:g} FLOPs at width {width}"):
        flops = shape.forward_flops_per_token(vocabulary, length)
        batch = rules.batch(budget, flops, width, length)
        steps = round(budget / 3 / (flops * batch * length))
        lr, beta2 = rules.peak_lr(width, batch), rules.beta2(batch)
        return PlannedRun(budget, shape, batch, steps, lr, beta2, vocabulary, length)


def _reason(rules: Rules, run: PlannedRun) -> str:
    """Returns why the rules leave a run out, "" if they do not."""
    if run.batch < rules.min_batch:
        return f"batch {run.batch} is below {rules.min_batch}"
    if run.steps >= rules.max_steps:
        return f"{_whole(run.steps)} steps; there must be fewer than {rules.max_steps:,}"
    if abs(run.flops / run.budget - 1) > rules.tolerance:
        return f"{run.steps} steps miss the budget by more than {rules.tolerance:.0%}"
    return ""


def _whole(value: int) -> str:
    return f"{value:,}" if value < 1e12 else f"{value:.3g}"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows with the same keys as CSV; numbers keep all digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_plan(file: str | Path) -> tuple[PlannedRun, ...]:
    """Reads the table of `soda scaling plan`; further columns are ignored.

    The vocabulary, the sequence length and the size of a head have no column; they follow from the
    counts of parameters and tokens.

    Raises:
      UserError: if the file is missing, lacks a column or runs, or a row contradicts itself.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read: {error}; give a table of soda scaling plan"
        ) from None
    if not rows:
        raise UserError(f"{file} has no runs; write it with soda scaling plan")
    return tuple(_parse(f"{file}, line {line}", row) for line, row in enumerate(rows, start=2))


def _parse(where: str, row: Mapping[str, Any]) -> PlannedRun:
    if missing := [name for name in COLUMNS if row.get(name) is None]:
        raise UserError(f"{where} has no {', '.join(missing)}; write it with soda scaling plan")
    try:
        value: dict[str, Any] = {
            name: float(row[name]) if name in _FLOATS else int(row[name]) for name in COLUMNS
        }
        if bad := [name for name in COLUMNS if not 0 < value[name] < math.inf]:
            raise ValueError(f"{bad[0]} = {row[bad[0]]} is not a number above 0")
        width, layers, heads, d_ff = (value[key] for key in ("width", "layers", "heads", "d_ff"))
        layer = (value["params_non_embedding"] - width) // layers
        head_dim = (layer - 3 * width * d_ff - 2 * width) // (4 * width * heads + 2)
        vocabulary = (value["params_total"] - value["params_one_head"]) // width
        length = value["tokens"] // (value["batch"] * value["steps"])
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {error}; write it with soda scaling plan") from None
    shape = Shape(width, layers, heads, head_dim, d_ff)
    sizes = (value["batch"], value["steps"], value["lr"], value["beta2"], vocabulary, length)
    run = PlannedRun(value["budget"], shape, *sizes)
    for name, expected in run.row().items():
        if abs(value[name] - expected) > 1e-6 * abs(expected):
            raise UserError(
                f"{where}: {name} = {row[name]}, but the other columns give {expected:g}; "
                "write it with soda scaling plan"
            )
    return run
