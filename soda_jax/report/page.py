"""Writes a report as one HTML file.

Each section is rendered by a function from `ReportContent` to HTML, which returns an empty
string if the content has nothing for this section.
"""

from collections.abc import Iterable, Sequence
from os import PathLike

import numpy as np

from soda_jax.evaluate.tables import class_rows, not_below
from soda_jax.files import write_atomic
from soda_jax.report import figures
from soda_jax.report.content import ReportContent
from soda_jax.report.elements import escaped, nats, page, sample_card, section
from soda_jax.train.metric_logs import read_metrics

_EXAMPLES = 12  # examples shown; further ones are collapsed in <details>


def write_report(path: str | PathLike[str], content: ReportContent) -> None:
    """Writes a report as one HTML file with embedded figures and audio, readable offline.

    Raises:
      UserError: if matplotlib is not installed.
    """
    write_atomic(path, render(content))


def render(content: ReportContent) -> str:
    """Returns the HTML of a report."""
    parts = (samples, word_errors, held_out, curves, facts, stages, commands)
    return page(content.title, content.intro, "".join(part(content) for part in parts))


def facts(content: ReportContent) -> str:
    """Returns the section with the properties of the run."""
    rows = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>"
        for name, value in content.facts.items()
    )
    return section("Run", f'<div class="card"><dl>{rows}</dl></div>') if rows else ""


def stages(content: ReportContent) -> str:
    """Returns the section with the duration of each stage, as a table with bars."""
    if not content.stages:
        return ""
    total = sum(seconds for _, seconds in content.stages)
    longest = max(seconds for _, seconds in content.stages) or 1.0
    rows = [
        f"<tr><td>{escaped(name)}</td><td>{_duration(seconds)}</td>"
        f'<td class="wide"><div class="bar" style="width:{100 * seconds / longest:.1f}%"></div></td></tr>'
        for name, seconds in content.stages
    ]
    rows.append(f'<tr class="total"><td>total</td><td>{_duration(total)}</td><td></td></tr>')
    table = f'<table style="width:100%">{"".join(rows)}</table>'
    return section("Time of each stage", f'<div class="card">{table}</div>')


def curves(content: ReportContent) -> str:
    """Returns the sections with loss curves and throughput."""
    rows = read_metrics(content.metrics) if content.metrics else []
    if not rows:
        return ""
    classes = [
        key.removeprefix("loss/")
        for key in dict.fromkeys(key for row in rows for key in row)
        if key.startswith("loss/") and key.count("/") == 1 and key != "loss/all"
    ]
    loss = figures.loss_figure(
        rows,
        classes,
        baselines=content.evaluation.get("baselines"),
        resumed_at=content.resumed_at,
    )
    speed = figures.throughput_figure(rows, resumed_at=content.resumed_at)
    resumed = ", ".join(f"{step:,}" for step in content.resumed_at)
    note = f" The run was resumed at step {resumed}." if resumed else ""
    steady = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    median = f" Median: {np.median(steady):,.0f} tokens per second." if steady else ""
    peak = f"; 100% would be {content.peak}" if content.peak else ""
    return section(
        "Loss",
        f"<p>By class of token, from training batches and held-out windows.{escaped(note)}</p>"
        f'<div class="card">{figures.svg(loss, "Loss by class of token over the steps")}</div>',
    ) + section(
        "Throughput",
        f"<p>Model FLOP utilization (MFU) excludes recomputation{escaped(peak)}.{escaped(median)}</p>"
        f'<div class="card">{figures.svg(speed, "Throughput over the steps")}</div>',
    )


def held_out(content: ReportContent) -> str:
    """Returns the section with the held-out losses of model, unigram and bigram by token class."""
    evaluation = content.evaluation
    if "loss" not in evaluation:
        return ""
    rows = class_rows(evaluation)
    body = []
    for row in rows:
        margin = row.margin
        sign = "" if margin is None else ("good" if margin > 0 else "bad")
        losses = (row.model, row.unigram, row.bigram)
        cells = "".join(f"<td>{nats(value)}</td>" for value in losses)
        shown = nats(margin, signed=True)
        kind = ' class="total"' if row.name == "all" else ""
        name = row.name.replace("_", " ")
        body.append(
            f'<tr{kind}><td>{escaped(name)}</td>{cells}<td class="{sign}">{shown}</td></tr>'
        )
    missed = not_below(rows)
    if all(row.margin is None for row in rows):
        verdict = "The baselines were not measured with the normalizer of the model."
    elif missed:
        names = ", ".join(name.replace("_", " ") for name in missed)
        verdict = (
            '<span class="bad">The model loss is not below both baselines for: '
            f"{escaped(names)}.</span>"
        )
    else:
        verdict = (
            '<span class="good">The model loss is below both baselines for every class of token.'
            "</span>"
        )
    loss = evaluation["loss"]
    intro = (
        f"<p>Nats per token over {loss['tokens']:,} held-out tokens ({loss['windows']:,} windows) at step "
        f"{evaluation['step']:,}; margin: better baseline minus model. {verdict}</p>"
    )
    head = "".join(f"<th>{name}</th>" for name in ("class", "model", "unigram", "bigram", "margin"))
    table = f"<table><tr>{head}</tr>{''.join(body)}</table>"
    return section("Held-out loss against baselines", f'{intro}<div class="card">{table}</div>')


def word_errors(content: ReportContent) -> str:
    """Returns the section with ASR and TTS word error rates, transcripts and references."""
    cards = []
    if asr := content.evaluation.get("asr"):
        examples = [(row["reference"], row["hypothesis"]) for row in asr["examples"]]
        numbers = _numbers([("corpus WER", asr["word_error_rate"])])
        remark = f"ASR: {asr['utterances']} held-out utterances, {asr['decoding']}."
        table = _examples(("reference", "transcript"), examples)
        cards.append(f"<h3>{escaped(remark)}</h3>{numbers}{table}")
    if tts := content.evaluation.get("tts"):
        shown = [
            ("mean WER", tts["mean_word_error_rate"]),
            ("corpus WER", tts["word_error_rate"]),
            ("codec reconstructions, mean WER", tts["codec_mean_word_error_rate"]),
            ("complete utterances", tts["complete_share"]),
        ]
        examples = [
            (row["reference"], row["heard"] if row["complete"] else "— unfinished —")
            for row in tts["examples"]
        ]
        remark = (
            f"TTS: {tts['utterances']} texts of held-out documents, speech transcribed by "
            f"{tts['recognizer']}; {tts['sampling']}, at most {tts['max_seconds']:g} s."
        )
        note = (
            '<p class="soft">An unfinished utterance counts as 100% errors. Before the comparison, '
            "each number is replaced by its digits.</p>"
        )
        table = _examples(("text", "recognized as"), examples)
        cards.append(f"<h3>{escaped(remark)}</h3>{_numbers(shown)}{note}{table}")
    if not cards:
        return ""
    body = "".join(f'<div class="card">{card}</div>' for card in cards)
    return section("Word error rates", f'<div class="grid">{body}</div>')


def samples(content: ReportContent) -> str:
    """Returns the section with the samples, their spectrograms and audio players."""
    body = "".join(sample_card(sample, number) for number, sample in enumerate(content.samples, 1))
    return section("Samples", f'<div class="grid">{body}</div>') if body else ""


def commands(content: ReportContent) -> str:
    """Returns the section with the commands for next steps."""
    body = "".join(
        f"<div>{escaped(what)}</div><pre>{escaped(line)}</pre>" for what, line in content.commands
    )
    return section("Next steps", f'<div class="card">{body}</div>') if body else ""


def _examples(head: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    def table(some: Iterable[tuple[str, str]]) -> str:
        titles = "".join(f'<th class="text">{escaped(name)}</th>' for name in head)
        body = "".join(
            f'<tr><td class="text">{escaped(left)}</td><td class="text">{escaped(right)}</td></tr>'
            for left, right in some
        )
        return f"<table><tr>{titles}</tr>{body}</table>"

    if len(rows) <= _EXAMPLES:
        return table(rows)
    more = len(rows) - _EXAMPLES
    return (
        f"{table(rows[:_EXAMPLES])}<details><summary>{more} more</summary>"
        f"{table(rows[_EXAMPLES:])}</details>"
    )


def _numbers(named: Iterable[tuple[str, float]]) -> str:
    items = "".join(f"<div><b>{value:.1%}</b>{escaped(name)}</div>" for name, value in named)
    return f'<div class="numbers">{items}</div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
