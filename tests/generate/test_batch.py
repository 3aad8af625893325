"""Batches: manifests are checked, results are complete, an interrupted batch continues."""

import dataclasses
import json
import os

import numpy as np
import pytest
import soundfile

from soda_jax.codecs.audio import write_wav
from soda_jax.errors import UserError
from soda_jax.generate import batch as batch_module
from soda_jax.generate.batch import BatchOptions, read_examples, read_manifest, run_batch
from soda_jax.generate.pipeline import Pipeline
from soda_jax.generate.tasks import Request, TaskOptions, task
from soda_jax.registry import GENERATION_TASKS

OPTIONS = BatchOptions("speak", TaskOptions(max_seconds=1.0, max_tokens=8))
TEXTS = [Request(f"n{number}", text) for number, text in enumerate(["one", "two", "six", "up"])]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_batch_writes_a_row_and_a_sound_file_per_item(model, tmp_path):
    summary = run_batch(model, TEXTS, tmp_path / "out", OPTIONS)
    rows = rows_of(tmp_path / "out")
    assert [row["name"] for row in rows] == ["n0", "n1", "n2", "n3"]
    expected = Pipeline(model, "speak", OPTIONS.options)(TEXTS)
    for row, result in zip(rows, expected, strict=True):
        audio, rate = soundfile.read(tmp_path / "out" / row["audio"])
        assert (len(audio), rate) == (len(result.audio), 1_000)
        np.testing.assert_allclose(audio, result.audio, atol=1e-4)
        assert (row["text"], row["finished"]) == (result.text, result.finished)
        assert row["seconds"] == len(audio) / rate == row["parts"][-1]["end"]
    assert summary.items == 4 and not summary.failed
    assert summary.finished == sum(row["finished"] for row in rows)
    assert summary.seconds == pytest.approx(sum(row["seconds"] for row in rows))


class StoppedError(Exception):
    pass


def test_a_stopped_batch_continues_without_repeating_an_item(model, tmp_path, monkeypatch):
    run_batch(model, TEXTS, tmp_path / "whole", OPTIONS)
    append, started = batch_module.append_json_line, []

    def stop(path, row):
        append(path, row)
        if len(started) < 2:
            started.append(row["name"])
        if len(started) == 2:
            raise StoppedError

    monkeypatch.setattr(batch_module, "append_json_line", stop)
    with pytest.raises(StoppedError):
        run_batch(model, TEXTS, tmp_path / "out", OPTIONS)
    results = tmp_path / "out" / "results.jsonl"
    results.write_text(results.read_text() + '{"name": "n3", "text"')  # a line cut by a kill
    again = []
    monkeypatch.setattr(
        batch_module,
        "append_json_line",
        lambda path, row: again.append(row["name"]) or append(path, row),
    )
    run_batch(model, TEXTS, tmp_path / "out", OPTIONS)
    assert sorted(again + started) == ["n0", "n1", "n2", "n3"]
    # The number of rows that are decoded together changes log-probabilities by rounding.
    found = [rows_of(tmp_path / name) for name in ("out", "whole")]
    one, two = (
        [part.pop("mean_log_probability") for row in rows for part in row["parts"]]
        for rows in found
    )
    assert found[0] == found[1]
    assert one == pytest.approx(two, abs=1e-5)
    for name in ("n0", "n1", "n2", "n3"):
        one, two = ((tmp_path / f / f"{name}.wav").read_bytes() for f in ("out", "whole"))
        assert one == two


def test_failed_and_changed_items_are_generated_again(model, tmp_path, capsys):
    clip = 0.5 * np.sin(np.arange(300) / 5)
    options = BatchOptions("transcribe", TaskOptions(max_tokens=8))
    write_wav(tmp_path / "a.wav", clip, 1_000)
    requests = [
        Request("a", audio=str(tmp_path / "a.wav")),
        Request("b", audio=str(tmp_path / "b.wav")),
    ]
    summary = run_batch(model, requests, tmp_path / "out", options)
    assert [name for name, _ in summary.failed] == ["b"]
    write_wav(tmp_path / "b.wav", clip, 1_000)
    assert not run_batch(model, requests, tmp_path / "out", options).failed
    assert "1 of 2 items are complete" in capsys.readouterr().err
    before = rows_of(tmp_path / "out")
    write_wav(tmp_path / "a.wav", clip[:200], 1_000)
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    run_batch(model, requests, tmp_path / "out", options)
    after = rows_of(tmp_path / "out")
    assert (after[0]["seconds"], after[1]) == (0.2, before[1])


def test_an_item_whose_audio_was_removed_is_generated_again(model, tmp_path):
    run_batch(model, TEXTS, tmp_path / "out", OPTIONS)
    before = (tmp_path / "out" / "n1.wav").read_bytes()
    (tmp_path / "out" / "n1.wav").unlink()
    run_batch(model, TEXTS, tmp_path / "out", OPTIONS)
    assert (tmp_path / "out" / "n1.wav").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out cannot be written \(Not a directory\)"):
        run_batch(model, TEXTS, tmp_path / "file" / "out", OPTIONS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text("[1]")
    with pytest.raises(UserError, match="is damaged"):
        run_batch(model, TEXTS, tmp_path / "out", OPTIONS)


def test_results_of_other_settings_or_other_files_are_kept(model, tmp_path):
    run_batch(model, TEXTS[:1], tmp_path / "out", OPTIONS)
    content = (tmp_path / "out" / "results.jsonl").read_bytes()
    with pytest.raises(UserError, match="has results with seed 0, not 1"):
        run_batch(model, TEXTS, tmp_path / "out", dataclasses.replace(OPTIONS, seed=1))
    with pytest.raises(UserError, match="is not the output of a batch"):
        run_batch(model, TEXTS, tmp_path, OPTIONS)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == content
    (tmp_path / "out" / "results.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="is damaged"):
        run_batch(model, TEXTS, tmp_path / "out", OPTIONS)


def test_results_of_other_manifests_are_kept(model, tmp_path):
    run_batch(model, TEXTS[:2], tmp_path / "out", OPTIONS)
    before = rows_of(tmp_path / "out")
    summary = run_batch(model, TEXTS[2:], tmp_path / "out", OPTIONS)
    assert summary.items == 2
    assert [row["name"] for row in rows_of(tmp_path / "out")] == ["n2", "n3", "n0", "n1"]
    assert rows_of(tmp_path / "out")[2:] == before


def test_a_batch_may_be_started_from_another_folder(model, tmp_path, monkeypatch):
    options = BatchOptions("transcribe", TaskOptions(max_tokens=8))
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(300) / 5), 1_000)
    (tmp_path / "rows.tsv").write_text("audio\na.wav\n")
    run_batch(model, read_manifest(tmp_path / "rows.tsv", "transcribe"), tmp_path / "out", options)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch_module, "append_json_line", lambda path, row: pytest.fail("repeated"))
    run_batch(model, read_manifest("rows.tsv", "transcribe"), "out", options)


def test_options_that_a_task_does_not_use_do_not_matter(model, tmp_path):
    run_batch(model, TEXTS[:1], tmp_path / "out", OPTIONS)
    other = dataclasses.replace(OPTIONS.options, segment_seconds=3.0)
    run_batch(model, TEXTS[:1], tmp_path / "out", dataclasses.replace(OPTIONS, options=other))


def test_a_task_may_take_columns_of_its_own(tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlanguage\nhello\tfr\n")
    task("translate", ["text", "language"])(lambda context, request: None)
    try:
        (request,) = read_manifest(tmp_path / "rows.tsv", "translate")
        assert (request.text, request.more) == ("hello", {"language": "fr"})
    finally:
        del GENERATION_TASKS._functions["translate"]


def test_long_texts_of_a_tsv_are_read(tmp_path):
    (tmp_path / "rows.tsv").write_text(f"text\n{'word ' * 50_000}\n")
    (request,) = read_manifest(tmp_path / "rows.tsv", "speak")
    assert len(request.text) == 249_999


def test_rows_without_the_grammar_compare_it(model, tmp_path):
    options = dataclasses.replace(OPTIONS, constrained=False)
    summary = run_batch(model, TEXTS, tmp_path / "out", options)
    rows = rows_of(tmp_path / "out")
    assert summary.legal == sum(row["legal"] for row in rows) < 4  # the weights are random
    assert summary.finished_with_grammar == sum(row["finished_with_grammar"] for row in rows)
    assert "without the grammar" in "".join(summary.lines())


def test_manifests_are_read(tmp_path):
    tsv = tmp_path / "rows.tsv"
    tsv.write_text('name\ttext\tnote\nx\tsay "hi"\t-\n\tsecond\t-\n')
    assert [(r.name, r.text) for r in read_manifest(tsv, "speak")] == [
        ("x", 'say "hi"'),
        ("000002", "second"),
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text('\ufeff{"name": "x", "audio": "sub/a.wav"}\n\n{"audio": "/abs/b.wav"}\n')
    found = read_manifest(lines, "transcribe")
    assert [(r.name, r.audio) for r in found] == [
        ("x", str(tmp_path / "sub/a.wav")),
        ("000002", "/abs/b.wav"),
    ]
    lines.write_text('{"text": "a"}\n{"text": "b", "voice": "v.wav", "voice_text": "v"}\n')
    one, two = read_manifest(lines, "speak", ("me.wav", "my text"))
    assert (one.voice, one.voice_text) == ("me.wav", "my text")
    assert (two.voice, two.voice_text) == (str(tmp_path / "v.wav"), "v")
    lines.write_text('{"audio": "a.wav", "text": "one"}\n')
    assert read_examples(lines) == ((str(tmp_path / "a.wav"), "one"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"text": "a"}\n{"name": "x"}\n', r"a.jsonl:2: speak needs the column text"),
        ("a.jsonl", "[1]\n", "a.jsonl:1 is not a JSON object"),
        ("a.jsonl", "{\n", "a.jsonl:1 is not JSON"),
        ("a.jsonl", '{"text": 3}\n', "text is 3: write a string"),
        ("a.jsonl", '{"text": "a", "name": "../x"}\n', "cannot be a file name"),
        ("a.jsonl", '{"text": "a", "name": "x"}\n{"text": "b", "name": "X"}\n', "X occurs twice"),
        ("a.jsonl", '{"text": "a", "name": 0}\n', "name is 0: write a string"),
        ("a.jsonl", '{"text": "a\\u0000b"}\n', "write a string without NUL"),
        ("a.jsonl", '{"text": "a", "name": "\\ud800"}\n', "write a string without NUL"),
        ("a.jsonl", '{"text": "a", "name": "' + "語" * 70 + '"}\n', "at most 200 bytes"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1 is not JSON"),
        ("a.tsv", "words\nhello\n", "a.tsv:2: speak needs the column text"),
        ("a.tsv", "text\tname\nhello\n", "a.tsv:2 has 1 columns, the header 2"),
        ("a.csv", "text\n", "must end in .jsonl or .tsv"),
    ],
)
def test_bad_manifests_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / name, "speak")
