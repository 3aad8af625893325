"""Writes a report about several runs as one HTML file: `soda report`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from soda_jax.files import write_atomic
from soda_jax.report import figures, run_tables, score_tables
from soda_jax.report.elements import escaped, page, run_name, sample_card, section
from soda_jax.report.recordings import Recordings
from soda_jax.report.run_figures import losses_figure, scores_figure, style_of
from soda_jax.report.runs import ReportedRun

MAX_BYTES = 32 * 2**20  # of a page; samples beyond it are not shown
_MOST_SCORES = 40  # panels of the figure of scores
# Last parts of the keys of numbers that are logged with scores and are not scores.
_NOT_SCORES = {"items", "scored", "utterances", "windows", "tokens", "complete", "seconds"}
_NOT_SCORES |= {"low", "high", "tie"}


def write_comparison(
    path: str | PathLike[str], runs: Sequence[ReportedRun], recordings: Sequence[Recordings] = ()
) -> None:
    """Writes the report atomically.

    Args:
      path: the HTML file.
      runs: the runs, in the order of their rows.
      recordings: samples with players.

    Raises:
      UserError: if matplotlib is not installed.
    """
    write_atomic(path, render_comparison(runs, recordings))


def render_comparison(
    runs: Sequence[ReportedRun],
    recordings: Sequence[Recordings] = (),
    max_bytes: int = MAX_BYTES,
) -> str:
    """Returns the HTML of the report; samples are shown while it is smaller than `max_bytes`."""
    parts = (
        *(run_tables.settings, score_tables.benchmarks, score_tables.other_scores),
        *(run_tables.held_out, losses, scores, score_tables.parts),
        *(run_tables.speech, run_tables.numbers, run_tables.failed),
    )
    title = f"Run {runs[0].label}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    # Rendered first, so that a missing matplotlib is reported before the figures are drawn.
    empty = page(title, "", "")
    body = "".join(part(runs) for part in parts)
    size = len((empty + body).encode())
    return page(title, "", body + samples(recordings, max_bytes - size))


def losses(runs: Sequence[ReportedRun]) -> str:
    """Returns the section with the losses over the steps, all runs in one figure."""
    classes = [
        key.removeprefix("loss/")
        for key in _keys(runs)
        if key.startswith("loss/") and key.count("/") == 1
    ]
    if not classes:
        return ""
    figure = losses_figure([run.rows for run in runs], classes)
    note = "<p>By class of token. Thin, pale lines: training batches, smoothed; thick lines: held-out windows.</p>"
    picture = figures.svg(figure, "Loss by class of token over the steps, all runs")
    return section("Loss over the steps", f'{note}{_legend(runs)}<div class="card">{picture}</div>')


def scores(runs: Sequence[ReportedRun]) -> str:
    """Returns the section with the scores of evaluations during training."""
    rows = [_score_rows(run) for run in runs]
    keys = {key for found in rows for row in found for key in row} - {"step"}
    keys = {key for key in keys if key.rpartition("/")[2] not in _NOT_SCORES}
    table = score_tables.during_training(runs)
    if not keys:
        return section("Scores during training", table) if table else ""
    titled = sorted((_title(key), key) for key in keys)
    # The accuracies of parts are last, because there may be many.
    titled.sort(key=lambda row: " part " in row[0])
    shown = titled[:_MOST_SCORES]
    figure = scores_figure(rows, [key for _, key in shown], [title for title, _ in shown])
    picture = figures.svg(figure, "Scores over the steps, all runs")
    more = f" {len(titled) - len(shown):,} more are not shown." if len(titled) > len(shown) else ""
    note = (
        "<p>As evaluated during training, often on subsets: see the table below, or the options of the run, for "
        f"items, normalizer and scorer. Do not compare them with the paper.{more}</p>"
    )
    card = f'<div class="card">{picture}</div>'
    return section("Scores during training", f"{note}{_legend(runs)}{card}{table}")


def samples(recordings: Sequence[Recordings], max_bytes: int) -> str:
    """Returns the section with players, whose HTML has at most about `max_bytes` bytes.

    The samples are chosen in turns, so that each folder has some if the space does not suffice for all.
    """
    cards: list[list[str]] = [[] for _ in recordings]
    number, used, full = 0, 0, False
    longest = max((len(found.samples) for found in recordings), default=0)
    for turn in range(longest):
        for found, chosen in zip(recordings, cards, strict=True):
            if full or turn >= len(found.samples):
                continue
            number += 1
            card = sample_card(found.samples[turn], number)
            used += len(card.encode())
            full = used > max_bytes
            if not full:
                chosen.append(card)
    body = ""
    for found, chosen in zip(recordings, cards, strict=True):
        limit = ", because of the size of the page" if full else ""
        title = f"{found.title}: the first {len(chosen):,} of {found.total:,} samples"
        cut = limit if len(chosen) < len(found.samples) else ""
        if found.failed or found.silent:
            cut += f"; {found.failed:,} items failed, {found.silent:,} have no audio"
        body += f'<h3>{escaped(title + cut)}</h3><div class="grid">{"".join(chosen)}</div>'
    return section("Samples", body) if body else ""


def _keys(runs: Sequence[ReportedRun]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for row in run.rows for key in row))


def _title(key: str) -> str:
    """Returns the title of the curve of a logged score."""
    task, *names = key.removeprefix("evaluation/").split("/")
    if len(names) == 5 and names[0] == names[4] == "accuracy":
        _, normalizer, tokens, part, _ = names
        part = "" if part == "all" else f" part {part}"
        return f"{task}{part}, {normalizer} ids, {tokens} tokens"
    return " ".join([task, *names])


def _score_rows(run: ReportedRun) -> list[Mapping[str, Any]]:
    """Returns step and scores of each evaluation, as logged; else those of the files in `evaluations/`."""
    logged = [
        {key: value for key, value in row.items() if key.startswith("evaluation/") or key == "step"}
        for row in run.rows
    ]
    logged = [row for row in logged if len(row) > 1]
    if logged:
        return list(logged)
    return [
        {"step": results.step}
        | {
            f"evaluation/{score.name}, {score.normalizer}"
            + f", {score.tokens} tokens" * bool(score.tokens): score.value
            for score in results.scores
            if score.value is not None
        }
        for results in run.during
    ]


def _legend(runs: Sequence[ReportedRun]) -> str:
    def entry(number: int, run: ReportedRun) -> str:
        style = style_of(number)[1]
        label = f"{run.label} ({style})" if style else run.label
        return run_name(number, label)

    return f'<p class="legend">{"".join(entry(n, run) for n, run in enumerate(runs))}</p>'
