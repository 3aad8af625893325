"""The report page: self-contained, complete and correct."""

import base64
import io
import json
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest

from soda_jax.report import figures
from soda_jax.report.content import Clip, ReportContent, Sample
from soda_jax.report.page import render, write_report

CLASSES = ("text", "semantic", "acoustic_1", "marker")
TONE = (0.5 * np.sin(np.arange(8_000) / 7)).astype(np.float32)


def vector(value, **others):
    return {f"loss/{name}": others.get(name, value) for name in (*CLASSES, "all")}


def evaluation(**bigram):
    loss = {"classes": list(CLASSES), "tokens": 1234, "windows": 7, "left_out": []}
    example = {"name": "d#0", "reference": "two eight", "hypothesis": "two late"}
    spoken = {**example, "heard": "to wait", "heard_from_codec": "two eight"}
    return {
        "step": 40,
        "loss": {**loss, "model": vector(2.0)},
        "baselines": {"unigram": vector(5.0), "bigram": vector(3.0, **bigram)},
        "asr": {
            "utterances": 20,
            "decoding": "greedy",
            "word_error_rate": 0.257,
            "mean_word_error_rate": 0.3,
            "examples": [example] * 20,
        },
        "tts": {
            "utterances": 2,
            "recognizer": "Whisper tiny.en",
            "sampling": "temperature 0.9, top-p 0.8",
            "max_seconds": 4.0,
            "complete_share": 0.5,
            "word_error_rate": 0.75,
            "mean_word_error_rate": 0.8125,
            "codec_word_error_rate": 0.0625,
            "codec_mean_word_error_rate": 0.04375,
            "examples": [{**spoken, "complete": True}, {**spoken, "complete": False}],
        },
    }


@pytest.fixture
def metrics(tmp_path):
    rows = []
    for step in range(1, 41):
        row = {"step": step, **{f"loss/{name}": 8 / step + 1 for name in (*CLASSES, "all")}}
        row |= {"loss/speech/text": 1.0, "tokens_per_second": 1500.0 + step, "mfu": 0.2}
        row |= {"data_wait_seconds": 0.001, "seconds": None if step == 3 else 1.0}
        if step % 10 == 0:
            row |= {f"validation/loss/{name}": 8 / step + 1.2 for name in CLASSES}
        rows.append(row)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 41, "lo')
    return path


@pytest.fixture
def content(metrics):
    samples = [
        Sample("speak", "Say it", 16_000, [Clip("the model", TONE)], "one two", "", "won too"),
        Sample("transcribe", "Hear it", 16_000, [Clip("held out", TONE)], "", "go up", "go cup"),
        Sample("continue", "Go on", 16_000, [Clip("given", TONE), Clip("new", TONE[:0])]),
    ]
    return ReportContent(
        "A toy <b>& its voice</b>",
        "What it is.",
        [("tokenize", 12.3), ("train", 245.0)],
        metrics,
        evaluation(),
        samples,
        {"parameters": 2_612_345, "audio": "0.3 hours"},
        [("speak", 'soda generate --workdir=r speak "a & b" --output=x.wav')],
        [20],
        "3 GFLOP/s (measured)",
    )


class Page(HTMLParser):
    """Collects elements, references and visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_needs_no_network(content):
    page = Page(render(content))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, name, value[:60])
    assert not page.of("script") and not page.of("link")
    assert not re.search(r"@import|url\((?!#|[\"']?data:)", render(content))


def test_every_section_is_present(content):
    text = Page(render(content)).text
    for part in (
        *("What it is.", "text", "semantic", "acoustic 1", "marker", "training", "held-out"),
        *("bigram", "unigram", "resumed", "resumed at step 20", "tokens per second", "MFU in %"),
        *("3 GFLOP/s (measured)", "data wait", "2,612,345", "0.3 hours", "25.7%", "81.2%"),
        *("4.4%", "50.0%", "Whisper tiny.en", "two late", "to wait", "unfinished", "8 more"),
        *("one two", "won too", "go up", "go cup", "12.3 s", "4 min 05 s", "4 min 17 s"),
    ):
        assert part in text, part
    assert 'soda generate --workdir=r speak "a & b" --output=x.wav' in text


def test_every_clip_has_a_spectrogram_and_a_player_with_its_samples(content):
    page = Page(render(content))
    players = page.of("audio")
    assert len(players) == 4 and all("controls" in player for player in players)
    sound = base64.b64decode(players[0]["src"].removeprefix("data:audio/wav;base64,"))
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, len(TONE))
        heard = np.frombuffer(file.readframes(len(TONE)), "<i2") / 32767
    np.testing.assert_allclose(heard, TONE, atol=1e-4)
    labels = [svg["aria-label"] for svg in page.of("svg")]
    assert sum("waveform and spectrogram" in label for label in labels) == 4


def test_text_of_users_is_escaped(content):
    text = render(content)
    assert "<b>& its" not in text
    assert "A toy &lt;b&gt;&amp; its voice&lt;/b&gt;" in text


def test_ids_in_the_figures_are_unique(content):
    ids = [a["id"] for _, a in Page(render(content)).elements if "id" in a]
    assert len(ids) == len(set(ids)) > 0


def test_a_class_above_a_baseline_is_reported(content):
    assert "below both baselines for every class" in render(content)
    worse = ReportContent("t", evaluation=evaluation(semantic=1.5))
    text = Page(render(worse)).text
    assert "not below both baselines for: semantic" in text
    assert "every class" not in text
    assert "-0.500" in text


def test_missing_baselines_are_reported_as_not_measured():
    without = evaluation()
    del without["baselines"]
    text = Page(render(ReportContent("t", evaluation=without))).text
    assert "were not measured" in text
    assert "below both" not in text


def test_an_empty_report_is_a_page(tmp_path):
    write_report(tmp_path / "report.html", ReportContent("Empty"))
    page = Page((tmp_path / "report.html").read_text())
    assert "Empty" in page.text
    assert not page.of("h2")


def test_figures_use_the_colors_of_the_page(metrics):
    rows = [json.loads(line) for line in metrics.read_text().splitlines()[:-1]]
    text = figures.svg(figures.loss_figure(rows, CLASSES, resumed_at=[20]), "loss")
    assert "currentColor" in text
    assert not re.search(r"(fill|stroke): ?(#000000|black|#ffffff|white)", text)


def test_a_figure_can_be_saved_for_documents():
    assert figures.png(figures.sound_figure(TONE, 16_000), 40).startswith(b"\x89PNG")
