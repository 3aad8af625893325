"""The tables of a report about several runs: one function per section, "" if it would be empty."""

from collections.abc import Iterator, Sequence

from soda_jax.evaluate.tables import ClassRow
from soda_jax.report.elements import escaped, nats, section, table
from soda_jax.report.published import COLUMNS, ROWS, SOURCE
from soda_jax.report.rows import Results, Score
from soda_jax.report.run_figures import color_of
from soda_jax.report.runs import ReportedRun

Runs = Sequence[ReportedRun]
_SHOWN = 5  # failed items of a task that are named
_NONE = "–"


def name_of(number: int, run: ReportedRun) -> str:
    """Returns the label of run `number` with a dot in its color, as HTML."""
    color = color_of(number)
    return f'<span class="dot" style="background:{color}"></span>{escaped(run.label)}'


def settings(runs: Runs) -> str:
    """Returns the section with the settings of the evaluations, and what is missing."""
    head = ("run", "parameters", "step", "checkpoint", "seed", "limit", "weights", "activations")
    rows, missing = [], []
    for number, run in enumerate(runs):
        given = run.results.settings if run.results else {}
        limit = given.get("limit")
        versions = given.get("versions")
        versions = versions if isinstance(versions, dict) else {}
        checkpoint = str(given.get("checkpoint") or _NONE)
        cells = (
            f'<span title="{escaped(checkpoint)}">{escaped(checkpoint[:12])}</span>',
            escaped(given.get("seed", _NONE)),
            escaped("default" if limit is None else limit or "all") if given else _NONE,
            escaped(given.get("weights_dtype", _NONE)),
            escaped(given.get("compute_dtype", _NONE)),
            escaped(", ".join(f"{name} {version}" for name, version in versions.items()) or _NONE),
        )
        step = escaped(run.results.step) if run.results else _NONE
        path = f"<small>{escaped(run.path)}</small>"
        rows.append((name_of(number, run) + path, escaped(run.parameters or _NONE), step, *cells))
        missing += [
            f"<div>{escaped(run.label)}: {escaped(what)}</div><pre>{escaped(command)}</pre>"
            for what, command in run.missing
        ]
    body = table((*head, "versions"), rows, {8})
    if missing:
        body += f'<div class="card"><h3>Missing</h3>{"".join(missing)}</div>'
    return section("Runs", body)


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
        first = f"{name_of(number, run)}<small>{escaped(size)}step {run.results.step:,}</small>"
        rows.append([first, *(_comparable(comparable.get(column.name)) for column in COLUMNS)])
    note = (
        "<p>Accuracies and word error rates (WER, lower is better) in percent, SIM as a cosine. Rows in italics are published numbers of "
        f"the paper ({escaped(SOURCE)}), not measured here. A score of a run is in this table only if it was "
        "measured like the paper's: the whole benchmark without <code>--limit</code>, log-probabilities of all "
        "audio or text tokens normalized over all ids (full ids), LibriSpeech test-clean zero-shot with the paper's "
        "text normalizer, and Seed-TTS-eval scored by Whisper-large-v3 (WER) and WavLM-large (SIM), recognized by "
        "their names. The decoding of the paper's ASR is not published; ours is greedy. All other scores are in "
        "the next table.</p>"
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
    return "" if score.low is None else f"{score.low:.1f}–{score.high:.1f}"


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
        *("score", *(name_of(n, runs[n]) for n in present), "normalizer", "tokens", "scorer"),
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
        head = ("part", "normalizer", "tokens", *(name_of(n, runs[n]) for n in present))
        lines = [
            [*map(escaped, key), *(found.get(number, _NONE) for number in present)]
            for key, found in rows.items()
        ]
        title = f"{task}: scored by {', '.join(scorers.get(task, []))}"
        body += f"<h3>{escaped(title)}</h3>{table(head, lines)}"
    note = "<p>Accuracy with its 95% interval. The part <em>all</em> has all items.</p>"
    return section("Accuracy by part", note + body) if body else ""


def held_out(runs: Runs) -> str:
    """Returns the section with the held-out loss vectors, side by side."""
    found = [(n, run, run.results) for n, run in enumerate(runs) if run.results]
    measured = [(number, run, results) for number, run, results in found if results.losses]
    if not measured:
        return ""
    names = list(dict.fromkeys(row.name for _, _, results in measured for row in results.losses))
    if "all" in names:
        names = [*(name for name in names if name != "all"), "all"]
    head, columns = ["class"], []
    for number, run, results in measured:
        by_name = {row.name: row for row in results.losses}
        head.append(name_of(number, run))
        columns.append([_loss(by_name.get(name)) for name in names])
    rows = [
        [escaped(name.replace("_", " ")), *cells]
        for name, *cells in zip(names, *columns, strict=True)
    ]
    about = "".join(
        f"<dt>{name_of(number, run)}</dt><dd>step {results.step:,}: {escaped(results.loss_settings)}</dd>"
        for number, run, results in measured
    )
    note = (
        "<p>Nats per token; in small type the margin: loss of the better of the unigram and bigram baselines (normalized over all "
        "ids) minus that of the model. Losses are comparable only for the same held-out data, front end and "
        "normalizer.</p>"
    )
    return section(
        "Held-out loss", f'{note}<div class="card"><dl>{about}</dl></div>{table(head, rows)}'
    )


def _loss(row: ClassRow | None) -> str:
    if row is None:
        return _NONE
    margin = "" if row.margin is None else f"<small>{nats(row.margin, signed=True)}</small>"
    return nats(row.model) + margin


def speech(runs: Runs) -> str:
    """Returns the section with word error rates and the share of finished outputs."""
    rows = [
        [
            *(escaped(row.task), name_of(number, run), escaped(row.items)),
            *(f"{row.corpus:.1%}", f"{row.mean:.1%}"),
            _NONE if row.finished is None else f"{row.finished:.1%}",
            *(escaped(row.scorer or "none: the model transcribes"), escaped(row.settings)),
            *(escaped(row.text), escaped(row.remarks or _NONE)),
        ]
        for number, run in enumerate(runs)
        for row in (run.results.speech if run.results else ())
    ]
    head = (
        *("task", "run", "items", "corpus WER", "mean WER", "finished", "recognizer", "decoding"),
        *("text normalizer", "other scores"),
    )
    note = (
        "<p>Tokens are decoded from the ids that the grammar permits. <em>Finished</em> is the share of outputs that the "
        "model ended within the limit. An unfinished utterance counts as all errors.</p>"
    )
    rows.sort(key=lambda cells: cells[0])
    return section("Word error rates", note + table(head, rows, {6, 7, 8, 9})) if rows else ""


def numbers(runs: Runs) -> str:
    """Returns the section with the numbers of tasks that have no table, by run."""
    values: dict[str, dict[int, float]] = {}
    for number, run in enumerate(runs):
        for name, value in run.results.numbers if run.results else ():
            values.setdefault(name, {})[number] = value
    present = sorted({number for found in values.values() for number in found})
    rows = [
        [escaped(name), *(f"{found[n]:,.6g}" if n in found else _NONE for n in present)]
        for name, found in values.items()
    ]
    head = ("task and score", *(name_of(n, runs[n]) for n in present))
    return section("Other tasks", table(head, rows)) if rows else ""


def failed(runs: Runs) -> str:
    """Returns the section with the number of failed items of each task, and the first of them."""
    rows = []
    for number, run in enumerate(runs):
        for row in run.results.failed if run.results else ():
            named = "".join(
                f"<div>{escaped(name)}: {escaped(reason)}</div>"
                for name, reason in row.failed[:_SHOWN]
            )
            if len(row.failed) > _SHOWN:
                named += f"<div>and {len(row.failed) - _SHOWN:,} more</div>"
            counts = f"{len(row.failed):,} of {row.items:,}"
            rows.append((escaped(row.task), name_of(number, run), counts, named))
    note = "<p>librispeech and seed_tts_eval count a failed item as all errors; the other tasks leave it out.</p>"
    head = ("task", "run", "failed", "name and reason")
    return section("Failed items", note + table(head, rows, {3})) if rows else ""


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
        start = [name_of(number, run), escaped(results.step), escaped(score.name)]
        yield [*start, *_score_cells(score), escaped("; ".join(score.differences) or "none")]
