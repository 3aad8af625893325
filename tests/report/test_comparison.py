"""The page of `soda report`: correct columns, escaped text, curves, players, errors of one line."""

import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluations import (
    SMALL,
    choices,
    evaluation,
    librispeech,
    seed_tts_eval,
    whole_suite,
    write_run,
    write_samples,
)

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.report.comparison import render_comparison
from soda_jax.report.figures import smoothed
from soda_jax.report.published import COLUMNS
from soda_jax.report.recordings import read_recordings
from soda_jax.report.runs import read_runs


class Tables(HTMLParser):
    """Collects the rows of every table under its section, the elements, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.elements, self.words = {}, [], []
        self._title, self._cell, self._in_title, self._classes = "", None, False, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "h2":
            self._in_title, self._title = True, ""
        if tag == "tr":
            self._classes = attributes.get("class", "")
            self.sections.setdefault(self._title, []).append((self._classes, []))
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag == "h2":
            self._in_title = False
        if tag in ("td", "th"):
            self.sections[self._title][-1][1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._in_title:
            self._title += data
        if self._cell is not None:
            self._cell.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, title):
        return [cells for _, cells in self.sections.get(title, [])]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


PAPER, OTHERS = "Benchmarks next to the paper", "Scores that are not comparable with the paper"


def page(*paths, **options):
    return Tables(render_comparison(read_runs([str(path) for path in paths]), **options))


def own_cells(tables):
    """The cells of the runs in the columns of the paper, by column."""
    head = tables.rows(PAPER)[0]
    names = [column.name for column in COLUMNS]
    assert head == ["model", *names]
    own = [cells for kind, cells in tables.sections[PAPER][1:] if kind != "published"]
    return [dict(zip(names, cells[1:], strict=True)) for cells in own]


def test_published_rows_are_marked_with_their_source(tmp_path):
    tables = page(write_run(tmp_path / "a", whole_suite()))
    published = [cells for kind, cells in tables.sections[PAPER] if kind == "published"]
    assert [cells[0].split()[0] for cells in published] == [
        *("SODA-135M", "SODA-600M", "SODA-1.7B", "SODA-4B")
    ]
    assert all("published, arXiv 2602.16687" in cells[0] for cells in published)
    assert published[1][1:] == [
        *("51.2", "58.9", "70.1", "70.7", "73.1", "35.8", "10.2", "7.6", "0.555")
    ]
    assert sum("published" in cells[0] for cells in tables.rows(PAPER)) == 4


def test_comparable_scores_are_next_to_the_published_ones(tmp_path):
    (own,) = own_cells(page(write_run(tmp_path / "a", whole_suite())))
    values = {name: cell.split()[0] for name, cell in own.items()}
    assert values == {
        **{"sBLIMP": "50.0", "sWUGGY": "60.0", "SALMon": "70.0", "tBLIMP": "72.5"},
        **{"tWUGGY": "75.0", "HellaSwag": "35.0", "ASR WER": "8.1", "TTS WER": "7.8"},
        **{"SIM": "0.543"},
    }
    assert "large-v3" in own["TTS WER"] and "WavLM-large" in own["SIM"]


def test_small_scorers_and_subsets_are_never_in_the_columns_of_the_paper(tmp_path):
    small = whole_suite(**SMALL)
    subset = evaluation(
        limit=200,
        hellaswag=choices(200, 0.5, parts=("",)),
        salmon=choices(200, 0.5, missing_parts=[]),
        librispeech=librispeech(200),
        seed_tts_eval=seed_tts_eval(200),
    )
    runs = [write_run(tmp_path / "small", small), write_run(tmp_path / "subset", subset)]
    tables = page(*runs)
    first, second = own_cells(tables)
    assert first["TTS WER"] == first["SIM"] == "–" and first["ASR WER"].startswith("8.1")
    assert set(second.values()) == {"–"}
    others = {(cells[0], cells[-1]): cells for cells in tables.rows(OTHERS)}
    row = others["TTS WER", "scored by Whisper tiny.en, not Whisper-large-v3"]
    assert row[1] == "7.8% 1,088 items" and "Whisper tiny.en" in row
    row = others["HellaSwag", "a subset of 200 items (--limit=200)"]
    assert row[1] == "–" and row[2].startswith("50.0%") and row[2].endswith("200 items")
    assert re.search(r"\d–\d", row[2]) and "full ids" in row


def test_scores_of_int8_weights_are_not_in_the_columns_of_the_paper(tmp_path):
    given = evaluation(hellaswag=choices(10_042, 0.5)) | {"weights_dtype": "int8"}
    tables = page(write_run(tmp_path / "a", given))
    (cells,) = own_cells(tables)
    assert set(cells.values()) == {"–"}
    assert "weights rounded to int8" in tables.rows(OTHERS)[1][-1]


def test_held_out_scores_name_scorer_and_normalizer_outside_of_the_columns(tmp_path):
    given = evaluation(
        asr={"utterances": 20, "decoding": "greedy", "finished_share": 0.95}
        | {"word_error_rate": 0.257, "mean_word_error_rate": 0.3, "examples": []},
        tts={"utterances": 2, "recognizer": "Whisper tiny.en", "complete_share": 0.5}
        | {"sampling": "temperature 0.9, top-p 0.8", "max_seconds": 4.0, "examples": []}
        | {"word_error_rate": 0.75, "mean_word_error_rate": 0.8125}
        | {"codec_word_error_rate": 0.0625, "codec_mean_word_error_rate": 0.04375},
    )
    tables = page(write_run(tmp_path / "a", given))
    assert set(own_cells(tables)[0].values()) == {"–"}
    names = [cells[0] for cells in tables.rows(OTHERS)]
    assert names == ["score", "ASR WER, held-out", "TTS WER, held-out"]
    head, asr, tts = tables.rows("Word error rates")
    assert asr[head.index("finished")] == "95.0%" and asr[head.index("corpus WER")] == "25.7%"
    assert tts[head.index("finished")] == "50.0%" and tts[head.index("mean WER")] == "81.2%"
    how = tts[head.index("recognizer, decoding, text normalizer")]
    assert how == "Whisper tiny.en temperature 0.9, top-p 0.8, at most 4 s numbers as digits"
    assert "4.4%" in tts[head.index("other scores")]


def test_accuracies_by_part_name_normalizer_and_tokens(tmp_path):
    tables = page(write_run(tmp_path / "a", whole_suite()), write_run(tmp_path / "b", evaluation()))
    rows = tables.rows("Accuracy by part")
    for wanted in (
        ["gender", "full ids", "all"],
        ["room", "legal ids", "semantic"],
        ["all", "full ids", "semantic"],
    ):
        assert wanted in [row[:3] for row in rows]
    salmon = next(row for row in rows if row[0] == "gender")
    assert "800 items" in salmon[3]
    assert "salmon: scored by mean log-probability per token" in tables.text


def test_losses_of_runs_are_side_by_side(tmp_path):
    one = write_run(tmp_path / "a", evaluation(loss=2.5))
    tables = page(one, write_run(tmp_path / "b", evaluation(loss=3.25)))
    head, *rows = tables.rows("Held-out loss")
    assert head == ["class", "a", "b"]
    assert rows[-1] == ["all", "2.500 +0.500", "3.250 -0.250"]
    assert "1,234 tokens in 7 windows, normalized over full ids, weights float32" in tables.text


def test_settings_of_every_run_are_shown(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(evaluation(limit=64)))
    tables = page(write_run(tmp_path / "a", evaluation(step=1200)), path)
    head, run, file = tables.rows("Runs")
    assert run[0].startswith("a ") and run[1:] == [
        *("596.0M", "1,200", "c0ffeec0ffee", "5", "default", "float32", "bfloat16"),
        "soda_jax 0.1.0, jax 0.10.2, numpy 2.3",
    ]
    # 28 layers of d 1024, as computed from the config.
    assert file[1] == "440.5M without the vocabulary" and file[5] == "64"
    assert len(head) == len(run)


def test_runs_with_the_same_name_have_different_labels(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "other"]
    tables = page(*(write_run(path, evaluation()) for path in paths))
    assert tables.rows("Held-out loss")[0] == ["class", "x/run", "y/run", "other"]


def test_a_run_and_its_other_evaluation_can_be_compared(tmp_path):
    run = write_run(tmp_path / "a", evaluation())
    (run / "step_10.json").write_text(json.dumps(evaluation(step=10)))
    assert [run.label for run in read_runs([str(run), str(run / "step_10.json")])] == [
        *("a", "a/step_10")
    ]
    with pytest.raises(UserError, match="given twice"):
        read_runs([str(run), str(run / "evaluation.json")])
    with pytest.raises(UserError, match="given twice"):
        read_runs([str(run), f"{run}/"])


def test_text_of_files_is_escaped(tmp_path):
    given = evaluation(
        hellaswag=choices(200, 0.5, parts=("<i>part</i>",), failed=9, scorer="<b>scorer</b>")
    )
    given["versions"] = {"<script>": "1 & 2"}
    given["checkpoint"] = '"><script>'
    run = write_run(tmp_path / "<img src=x> $a$b_", given, scores=["<u>$x^{</u>/$y"])
    recordings = [read_recordings(write_samples(tmp_path / "s", 1), "<s>", 5)]
    text = render_comparison(read_runs([str(run)]), recordings)
    for tag in ("<img", "<i>part", "<b>", "<script", "<u>", "<s>"):
        assert tag not in text, tag
    assert "&lt;img src=x&gt; $a$b_" in text
    shown = Tables(text)
    assert "say <b>0</b> & go" in shown.text and "<damaged> & long" in shown.text


def test_failed_items_are_counted_and_the_first_are_named(tmp_path):
    given = evaluation(seed_tts_eval=seed_tts_eval())
    _, row = page(write_run(tmp_path / "a", given)).rows("Failed items")
    assert row[:3] == ["seed_tts_eval", "a", "7 of 1,088"]
    assert row[3].count("does not end within 15 s") == 5 and row[3].endswith("and 2 more")


def test_numbers_of_other_tasks_are_shown(tmp_path):
    given = evaluation(grammar={"utterances": 3, "speech": {"legal_share": 0.125}, "seed": 0})
    given |= {"tasks": [*given["tasks"], "mine"], "mine": {"speed": 7, "name": "x", "failed": 3}}
    rows = page(write_run(tmp_path / "a", given)).rows("Other tasks")
    assert ["mine name", "x"] in rows
    assert ["grammar speech legal share", "0.125"] in rows and ["mine speed", "7"] in rows
    assert ["mine failed", "3"] in rows


def test_a_loss_that_is_not_finite_does_not_end_the_curve():
    values = np.arange(200.0)
    values[[50, 51]] = np.nan, np.inf
    found = smoothed(values)
    assert np.isfinite(found).all() and found[100:190] == pytest.approx(values[100:190])
    assert found[50] == pytest.approx(np.mean([47, 48, 49, 52, 53]))
    assert np.isnan(smoothed(np.full(100, np.nan))).all()


def test_curves_of_all_runs_are_in_one_figure(tmp_path):
    accuracy = "salmon/accuracy/full/all/{}/accuracy"
    keys = [accuracy.format("all"), accuracy.format("room"), "nll/legal/text_only"]
    keys += ["salmon/items", "salmon/accuracy/full/all/all/low", "seconds"]
    runs = [write_run(tmp_path / name, evaluation(), scores=keys) for name in ("a", "b")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render_comparison(read_runs([str(run) for run in runs]))
    tables = Tables(text)
    labels = [svg["aria-label"] for svg in tables.of("svg")]
    assert labels == [
        "Loss by class of token over the steps, all runs",
        "Scores over the steps, all runs",
    ]
    for word in ("semantic", "acoustic 1", "salmon, full ids, all", "nll legal text only"):
        assert word in tables.text, word
    assert "salmon part room" in tables.text and "salmon items" not in tables.text
    assert "seconds" not in tables.text and "all low" not in tables.text
    for color in ("#5b8fd1", "#e0782f"):
        assert len(re.findall(f"stroke: {color}", text)) >= 8, color
    ids = [a["id"] for _, a in tables.elements if "id" in a]
    assert len(ids) == len(set(ids)) > 0
    assert not re.search(r"(fill|stroke): ?(#000000|black|#ffffff|white)", text)


def test_evaluations_during_training_are_shown(tmp_path):
    run = write_run(tmp_path / "a", evaluation(step=40))
    (run / "evaluations").mkdir()
    for step in (10, 20):
        given = evaluation(64, step, None, salmon=choices(64, step / 40, missing_parts=[]))
        (run / "evaluations" / f"{step}.json").write_text(json.dumps(given))
    tables = page(run)
    head, *rows = tables.rows("Scores during training")
    assert [(row[1], row[3]) for row in rows] == [("10", "25.0%"), ("20", "50.0%")]
    assert all("a subset of 64 items" in row[-1] for row in rows) and "normalizer" in head
    assert "Scores over the steps, all runs" in [svg["aria-label"] for svg in tables.of("svg")]

    failed = {"failed": {"salmon": "no <data>"}, "settings": {}, "seconds": {"salmon": 1.0}}
    (run / "evaluations" / "5.json").write_text(json.dumps(failed))
    assert "a, step 5: salmon failed: no <data>" in page(run).text

    (run / "evaluation.json").unlink()
    tables = page(run)
    assert "no evaluation.json; the evaluation at step 20 is shown" in tables.text
    assert "50.0%" in tables.rows(OTHERS)[1][1]


def test_samples_have_players_and_the_number_shown_is_stated(tmp_path):
    run = write_run(tmp_path / "a", evaluation())
    write_samples(run / "samples", 3)
    other = write_samples(tmp_path / "other", 4)
    output = tmp_path / "new" / "report.html"
    arguments = ["report", str(run), f"--audio={other}", "--samples=2", f"--output={output}"]
    assert cli.main(arguments) == 0
    tables = Tables(output.read_text("utf-8"))
    players = tables.of("audio")
    assert len(players) == 4 and all("controls" in player for player in players)
    assert all(player["src"].startswith("data:audio/wav;base64,") for player in players)
    assert "a: the first 2 of 3 samples" in tables.text
    assert "the first 2 of 4 samples" in tables.text
    assert tables.text.count("The length limit ended the utterance") == 2
    labels = [svg.get("aria-label", "") for svg in tables.of("svg")]
    assert sum("waveform and spectrogram" in label for label in labels) == 4
    for tag, attributes in tables.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, name, value[:60])


def test_a_page_stays_below_its_size_limit(tmp_path):
    run = write_run(tmp_path / "a", evaluation())
    runs = read_runs([str(run)])
    found = [read_recordings(write_samples(tmp_path / name, 4), name, 4) for name in ("s", "t")]
    empty = len(render_comparison(runs).encode())
    full = len(render_comparison(runs, found).encode())
    limit = (empty + full) // 2
    text = render_comparison(runs, found, max_bytes=limit)
    assert len(text.encode()) <= limit + 2_000
    shown = re.findall(r"the first (\d) of 4 samples, because of the size", text)
    assert len(shown) == 2 and abs(int(shown[0]) - int(shown[1])) <= 1 and int(shown[0]) > 0


def test_a_silent_clip_is_replaced_by_a_note(tmp_path):
    from soda_jax.codecs.audio import write_wav

    folder = write_samples(tmp_path / "s", 1)
    write_wav(folder / "item 0.wav", np.zeros(8_000, np.float32), 16_000)
    (sample,) = read_recordings(folder, "s", 5).samples
    assert not sample.clips and "No player: " in sample.note


def test_long_clips_are_cut_to_thirty_seconds(tmp_path):
    folder = write_samples(tmp_path / "s", 1, seconds=31)
    (sample,) = read_recordings(folder, "s", 5).samples
    assert len(sample.clips[0].audio) == 30 * 24_000
    assert "first 30 s of 31.0 s" in sample.note


def test_items_without_audio_are_counted(tmp_path):
    folder = write_samples(tmp_path / "s", 2)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"name": "t", "text": "a transcript", "finished": true}\n')
        file.write('{"name": "u", "error": "the text is empty"}\n{"name": "v", "err')
    found = read_recordings(folder, "s", 5)
    assert (found.total, found.failed, found.silent) == (2, 1, 1)
    run = write_run(tmp_path / "a", evaluation())
    rows = (folder / "results.jsonl").read_text().splitlines()[:2]
    (folder / "results.jsonl").write_text("\n".join(rows))  # written without a last end of line
    assert read_recordings(folder, "s", 5).total == 2
    text = render_comparison(read_runs([str(run)]), [found])
    assert "s: the first 2 of 2 samples; 1 items failed, 1 have no audio" in text


def test_a_run_without_an_evaluation_shows_curves_and_the_command(tmp_path):
    tables = page(write_run(tmp_path / "a"))
    assert f"soda evaluate --workdir={tmp_path}/a" in tables.text
    assert tables.of("svg") and PAPER not in tables.sections
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(evaluation(loss=None)))
    tables = page(tmp_path / "b")
    assert "no metrics.jsonl" in tables.text and not tables.of("svg")


def test_a_cut_last_line_of_metrics_is_skipped(tmp_path):
    run = write_run(tmp_path / "a", evaluation())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert len(read_runs([str(run)])[0].rows) == 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", "is damaged, it is not JSON"),
        ("evaluation.json", "\udcff", "is damaged"),
        ("evaluation.json", "[]", "has no format_version"),
        ("evaluation.json", '{"format_version": 1}', "has format_version 1, not"),
        ("evaluation.json", {"tasks": ["salmon"]}, "is damaged or incomplete .KeyError: 'salmon'"),
        ("evaluation.json", {"salmon": {"accuracy": {}, "items": 1}, "step": "x"}, "incomplete"),
        ("evaluation.json", {"hellaswag": {"accuracy": [1]}}, "incomplete"),
        ("evaluation.json", {"librispeech": {"word_error_rate": "?"}}, "incomplete"),
        ("evaluation.json", {"limit": "many"}, "incomplete"),
        ("evaluation.json", {"step": float("inf")}, "incomplete .OverflowError"),
        ("evaluation.json", {"loss": {"classes": ["text"], "model": {"loss/text": None}}}, "incom"),
        ("evaluations/10.json", "{", "10.json is damaged"),
        ("metrics.jsonl", "[1]\n", "row 1 has no step"),
        ("metrics.jsonl", "\udcff", "metrics.jsonl is damaged"),
        ("samples/results.jsonl", "{\n", "results.jsonl:1 is not JSON"),
        ("samples/results.jsonl", "[]\n", "results.jsonl:1 is not an object"),
        ("samples/results.jsonl", '{"audio": "gone.wav"}\n', "gone.wav does not exist"),
    ],
)
def test_damaged_files_are_errors_of_one_line(tmp_path, capsys, name, content, message):
    run = write_run(tmp_path / "a", evaluation())
    if isinstance(content, dict):
        content = json.dumps(evaluation() | content)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content, "utf-8", errors="surrogateescape")
    output = tmp_path / "report.html"
    assert cli.main(["report", str(run), f"--output={output}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no RUN is given"),
        (["nowhere"], "nowhere does not exist"),
        (["gs://bucket/run"], "is a URL"),
        (["."], "has no metrics.jsonl and no evaluation.json"),
        (["a", "--audio=nowhere"], "nowhere/results.jsonl cannot be read"),
        (["a", "--output=."], "--output=. cannot be written (it is a folder)"),
        (["a", "--output=a/evaluation.json/x.html"], "--output=a/evaluation.json/x.html cannot"),
        (["a", "--samples=-1"], "--samples=-1 must be at least 0"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", evaluation())
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("soda report: error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "report.html").exists()


def test_the_report_is_written_to_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", evaluation())
    assert cli.main(["report", "a"]) == 0
    assert "open report.html" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!doctype html>")
