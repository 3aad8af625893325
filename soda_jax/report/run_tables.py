"""Tables of settings, losses and speech of several runs: one function per section, "" if it would be empty."""

from collections.abc import Sequence

from soda_jax.evaluate.tables import ClassRow
from soda_jax.report.elements import escaped, nats, run_name, section, table
from soda_jax.report.runs import ReportedRun

Runs = Sequence[ReportedRun]
_SHOWN = 5  # failed items of a task that are named
_NONE = "–"


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
        rows.append(
            (run_name(number, run.label) + path, escaped(run.parameters or _NONE), step, *cells)
        )
        missing += [
            f"<div>{escaped(run.label)}: {escaped(what)}</div><pre>{escaped(command)}</pre>"
            for what, command in run.missing
        ]
        missing += [
            f"<div>{escaped(run.label)}, step {results.step:,}: {escaped(f'{task} failed: {reason}')}</div>"
            for results in run.during
            for task, reason in results.stopped
        ]
    body = table((*head, "versions"), rows, {8})
    if missing:
        body += f'<div class="card"><h3>Missing or failed</h3>{"".join(missing)}</div>'
    return section("Runs", body)


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
        head.append(run_name(number, run.label))
        columns.append([_loss(by_name.get(name)) for name in names])
    rows = [
        [escaped(name.replace("_", " ")), *cells]
        for name, *cells in zip(names, *columns, strict=True)
    ]
    about = "".join(
        f"<dt>{run_name(number, run.label)}</dt><dd>step {results.step:,}: {escaped(results.loss_settings)}</dd>"
        for number, run, results in measured
    )
    note = (
        "<p>Nats per token; in small type the margin: loss of the better of the unigram and bigram baselines "
        "minus that of the model, all with the same normalizer. Losses are comparable only for the same held-out data, front end and "
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
            *(escaped(row.task), run_name(number, run.label), escaped(row.items)),
            *(f"{row.corpus:.1%}", f"{row.mean:.1%}"),
            _NONE if row.finished is None else f"{row.finished:.1%}",
            _lines((row.scorer or "the model itself", row.settings, row.text)),
            _lines(row.remarks) or _NONE,
        ]
        for number, run in enumerate(runs)
        for row in (run.results.speech if run.results else ())
    ]
    head = (
        *("task", "run", "items", "corpus WER", "mean WER", "finished"),
        *("recognizer, decoding, text normalizer", "other scores"),
    )
    note = (
        "<p>Tokens are decoded from the ids that the grammar permits. <em>Finished</em> is the share of outputs "
        "that the model ended within the limit. Speech that does not end counts as all errors.</p>"
    )
    rows.sort(key=lambda cells: cells[0])
    return section("Word error rates", note + table(head, rows, {1, 6, 7})) if rows else ""


def _lines(texts: Sequence[str]) -> str:
    return "<br>".join(map(escaped, texts))


def numbers(runs: Runs) -> str:
    """Returns the section with the numbers of tasks that have no table, by run."""
    values: dict[str, dict[int, float | str]] = {}
    for number, run in enumerate(runs):
        for name, value in run.results.numbers if run.results else ():
            values.setdefault(name, {})[number] = value
    present = sorted({number for found in values.values() for number in found})
    rows = [
        [escaped(name), *(_plain(found.get(n, _NONE)) for n in present)]
        for name, found in values.items()
    ]
    head = ("task and score", *(run_name(n, runs[n].label) for n in present))
    return section("Other tasks", table(head, rows)) if rows else ""


def _plain(value: float | str) -> str:
    return escaped(value) if isinstance(value, str) else f"{value:,.6g}"


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
            rows.append((escaped(row.task), run_name(number, run.label), counts, named))
    note = (
        "<p>asr, librispeech and seed_tts_eval count a failed item as all errors, unless its reference has no word; "
        "the other tasks leave it out.</p>"
    )
    head = ("task", "run", "failed", "name and reason")
    return section("Failed items", note + table(head, rows, {1, 3})) if rows else ""
