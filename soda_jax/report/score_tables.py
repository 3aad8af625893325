"""Tables of the scores of several runs: one function per section, "" if it would be empty."""

from collections.abc import Iterator, Sequence

from soda_jax.report.elements import escaped, run_name, section, table
from soda_jax.report.published import COLUMNS, ROWS, SOURCE
from soda_jax.report.rows import Results, Score
from soda_jax.report.runs import ReportedRun

Runs = Sequence[ReportedRun]
_NONE = "–"


def benchmarks(runs: Runs) -> str:
    """Returns the section with the paper's table, and the scores that are comparable with it."""
    if not any(run.results for run in runs):
        return ""
    head = ["model", *(escaped(column.name) for column in COLUMNS)]
    rows: list[list[str]] = []
    for name, values in ROWS.items():
        first = f"{escaped(name)}<small>published, {escaped(SOURCE)}</small>"
        shown = zip(COLUMNS, values, strict=True)
        rows.append([first, *(f"{value:.{column.decimals}f}" for column, value in shown)])
    for number, run in enumerate(runs):
        if run.results is None:
            continue
        comparable = {score.name: score for score in run.results.scores if not score.differences}
        size = f"{run.parameters}, " if run.parameters else ""
        first = (
            f"{run_name(number, run.label)}<small>{escaped(size)}step {run.results.step:,}</small>"
        )
        rows.append([first, *(_comparable(comparable.get(column.name)) for column in COLUMNS)])
    note = (
        "<p>Accuracies and word error rates (WER, lower is better) in percent, SIM as a cosine. Rows in italics are published numbers of "
        f"the paper ({escaped(SOURCE)}), not measured here. A score of a run is in this table only if it was "
        "measured like the paper's: the whole benchmark without <code>--limit</code>, log-probabilities of all "
        "audio or text tokens normalized over all ids (full ids), LibriSpeech test-clean zero-shot with the paper's "
        "text normalizer, and Seed-TTS-eval scored by Whisper-large-v3 (WER) and WavLM-large (SIM), recognized by "
        "their names. The decoding of the paper's ASR is not published; ours is greedy. Small type: 95% "
        "interval, scorer. All other scores are in the next table.</p>"
    )
    return section("Benchmarks next to the paper", note + table(head, rows, published=len(ROWS)))


def _comparable(score: Score | None) -> str:
    if score is None:
        return _NONE
    scorer = (
        f'<small class="wrap">{escaped(score.scorer)}</small>'
        if score.task == "seed_tts_eval"
        else ""
    )
    return f"{_value(score)}<small>{_interval(score)}</small>{scorer}"


def _value(score: Score, unit: str = "") -> str:
    if score.value is None:
        return _NONE
    return f"{score.value:.3f}" if score.name == "SIM" else f"{score.value:.1f}{unit}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"{score.low:.1f}–{score.high:.1f}"


_SCORE_HEAD = ("value", "95% interval", "items", "normalizer", "tokens", "scorer")


def _score_cells(score: Score) -> list[str]:
    return [
        *(_value(score, "%"), _interval(score) or _NONE, escaped(score.items)),
        *(escaped(value or _NONE) for value in (score.normalizer, score.tokens, score.scorer)),
    ]


def other_scores(runs: Runs) -> str:
    """Returns the section with the scores that are not comparable with the paper's columns, by run."""
    rows: dict[tuple[str, ...], dict[int, Score]] = {}
    for number, run in enumerate(runs):
        for score in run.results.scores if run.results else ():
            if score.differences:
                how = (score.normalizer, score.tokens, score.scorer, "; ".join(score.differences))
                rows.setdefault((score.name, *how), {})[number] = score
    if not rows:
        return ""
    order = [column.name for column in COLUMNS]
    present = sorted({number for found in rows.values() for number in found})
    lines = [
        [
            escaped(name),
            *(_other(rows[name, *how].get(number)) for number in present),
            *(escaped(value or _NONE) for value in how),
        ]
        for name, *how in sorted(
            rows, key=lambda row: order.index(row[0]) if row[0] in order else len(order)
        )
    ]
    first = len(present) + 1
    head = (
        *(
            "score",
            *(run_name(n, runs[n].label) for n in present),
            "normalizer",
            "tokens",
            "scorer",
        ),
        "difference from the paper's column",
    )
    note = (
        "<p>With the 95% interval, if there is one, and the number of items. Do not compare these numbers with the "
        "published rows.</p>"
    )
    texts = {first, first + 2, first + 3}
    return section(
        "Scores that are not comparable with the paper", note + table(head, lines, texts)
    )


def _other(score: Score | None) -> str:
    if score is None:
        return _NONE
    interval = f"{_interval(score)}<br>" if _interval(score) else ""
    return f"{_value(score, '%')}<small>{interval}{score.items:,} items</small>"


def parts(runs: Runs) -> str:
    """Returns the section with the accuracy of each part, normalizer and kind of tokens, by run."""
    cells: dict[str, dict[tuple[str, str, str], dict[int, str]]] = {}
    scorers: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for row in run.results.parts if run.results else ():
            key = (row.part, row.normalizer, row.tokens)
            shown = f"{row.accuracy:.1f}%<small>{row.low:.1f}–{row.high:.1f}, {row.items:,} items</small>"
            cells.setdefault(row.task, {}).setdefault(key, {})[number] = shown
        for score in run.results.scores if run.results else ():
            if score.tokens and score.scorer not in scorers.setdefault(score.task, []):
                scorers[score.task].append(score.scorer)
    body = ""
    for task, rows in cells.items():
        present = sorted({number for found in rows.values() for number in found})
        head = ("part", "normalizer", "tokens", *(run_name(n, runs[n].label) for n in present))
        lines = [
            [*map(escaped, key), *(found.get(number, _NONE) for number in present)]
            for key, found in rows.items()
        ]
        title = f"{task}: scored by {', '.join(scorers.get(task, []))}"
        body += f"<h3>{escaped(title)}</h3>{table(head, lines)}"
    note = "<p>Accuracy with its 95% interval. The part <em>all</em> has all items.</p>"
    return section("Accuracy by part", note + body) if body else ""


def during_training(runs: Runs) -> str:
    """Returns a table of the evaluations during training, collapsed; "" if there are none."""

    def lines() -> Iterator[list[str]]:
        for number, run in enumerate(runs):
            for results in run.during:
                yield from _lines_at(number, run, results)

    rows = list(lines())
    head = ("run", "step", "score", *_SCORE_HEAD, "difference from the paper's column")
    body = table(head, rows, {6, 8, 9})
    title = f"{len(rows):,} scores in {sum(len(run.during) for run in runs):,} evaluations"
    return f"<details><summary>{title}</summary>{body}</details>" if rows else ""


def _lines_at(number: int, run: ReportedRun, results: Results) -> Iterator[list[str]]:
    for score in results.scores:
        start = [run_name(number, run.label), escaped(results.step), escaped(score.name)]
        yield [*start, *_score_cells(score), escaped("; ".join(score.differences) or "none")]
