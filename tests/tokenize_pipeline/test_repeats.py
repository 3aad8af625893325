"""Repeated utterances and documents: the first is used, and the others are counted."""

import json
import shutil

import pytest
import soundfile
from corpora import emilia_yodas, librispeech, mls, seed_tts_eval
from pipeline_toys import RATE, documents_of, hum, quarantine_of, write_manifest

from soda_jax.data.format.manifest import Manifest
from tokenize_pipeline.dry_run import dry_run
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.merge import TooManyBadInputsError
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import Plan, read_documents
from tokenize_pipeline.planner import make_plan, speech_weight
from tokenize_pipeline.quarantine import read_rows
from tokenize_pipeline.readers import DocumentSource, find_reader

pytestmark = pytest.mark.usefixtures("toy_codec")
CLIP = hum(0.3)


def options(source, output, **changed):
    given = {"codec": "toy", "validation_fraction": 0.0, "shards": 2, **changed}
    return TokenizeOptions(str(source), str(output), **given)


def planned(folder, format_name, inputs, kind="speech") -> tuple[list[str], list, Plan]:
    """(document ids, rejected rows, plan) of a corpus."""
    plan = make_plan(
        folder / "plan",
        0,
        find_reader(format_name),
        inputs,
        {"kind": kind, "shards": 1, "validation_fraction": 0.0},
        weigh=speech_weight(folder) if kind == "speech" else lambda document: 1.0,
        known=frozenset(),
        first_numbers={"train": 0, "validation": 0},
    )
    documents = [d for shard in plan.shards for d in read_documents(folder / "plan", shard)]
    return [d.id for d in documents], read_rows(folder / "plan/rejected.jsonl"), plan


def corpus_of(folder, rows):
    folder.mkdir()
    soundfile.write(folder / "a.wav", hum(0.5), RATE)
    return write_manifest(folder / "m.jsonl", [{"audio": "a.wav", **row} for row in rows])


def test_repeats_are_listed_in_quarantine_summary_and_manifest(tmp_path):
    rows = [{"text": "one", "start": n / 100, "end": 0.4} for n in range(10)]
    source = corpus_of(tmp_path / "c", [*rows, *rows[:4]])
    summary = tokenize(options(source, tmp_path / "data", max_bad_fraction=0.0))
    assert summary.bad == {"duplicate": 4}
    assert Manifest.load(tmp_path / "data").quarantined == {"duplicate": 4}
    assert "4 duplicate" in summary.describe("data")
    assert summary.counts["repeated_in_input"] == 4 and summary.counts["documents"] == 10
    assert len(documents_of(tmp_path / "data")) == 10
    (first, *_) = quarantine_of(tmp_path / "data")
    assert first["where"] == "m.jsonl:11" and "repeats m.jsonl:1" in first["message"]
    assert dry_run(options(source, tmp_path / "new"), 1.0).rejected == {"duplicate": 4}


def test_a_second_transcript_of_a_sound_is_bad_and_not_stored(tmp_path):
    rows = [{"text": "one", "document": "d"}, {"text": "two", "document": "d"}, {"text": "one"}]
    source = corpus_of(tmp_path / "c", [*rows, {"text": "three"}])
    with pytest.raises(TooManyBadInputsError, match=r"2 of 4 inputs are bad .*conflicting"):
        tokenize(options(source, tmp_path / "data"))
    tokenize(options(source, tmp_path / "data", max_bad_fraction=0.5))
    found = documents_of(tmp_path / "data")
    assert {name: [u.text for u in us] for name, us in found.items()} == {
        "d": ["one"],
        "a.wav": ["one"],
    }
    rows = quarantine_of(tmp_path / "data")
    assert [(row["where"], row["reason"]) for row in rows] == [
        ("m.jsonl:2", "conflicting_duplicate"),
        ("m.jsonl:4", "conflicting_duplicate"),
    ]
    assert "m.jsonl:1" in rows[0]["message"] and "m.jsonl:3" in rows[1]["message"]


def test_repeated_texts_are_counted_and_another_text_with_the_same_id_is_reported(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"id": "a", "text": "one"}, {"id": "a", "text": "one "}, {"id": "a", "text": "two"}]
    rows += [{"text": "one"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids, rejected, plan = planned(tmp_path, "text", [path], "text")
    assert len(ids) == 2 and plan.counts["repeated_in_input"] == 3
    ((row),) = rejected
    assert (row.reason, row.where, row.document) == ("conflicting_duplicate", "t.jsonl:3", "a")


def test_a_corpus_given_unpacked_and_as_an_archive_is_used_once(tmp_path):
    chapters = {f"dev-clean/{n}/1": [("WORDS", CLIP), ("MORE", CLIP)] for n in (2, 3)}
    tree = sorted(librispeech.write_corpus(tmp_path, chapters).rglob("*.trans.txt"))
    path = librispeech.write_corpus(tmp_path, chapters, archive="a.tar.gz")
    ids, rejected, _ = planned(tmp_path, "librispeech", [*tree, path])
    assert len(ids) == len(set(ids)) == 2
    assert [row.reason for row in rejected] == ["duplicate"] * 2


def test_a_copy_of_an_archive_of_emilia_adds_no_document(tmp_path):
    paths = [
        emilia_yodas.write_corpus(tmp_path, {"EN_v": [(f"part {n}", CLIP)]}, shard=name, first=n)
        for n, name in enumerate(("EN-B000000", "EN-B000001"))
    ]
    copies = [shutil.copy(path, path.with_name(f"copy-{path.name}")) for path in paths]
    ids, rejected, _ = planned(tmp_path, "emilia_yodas", [*paths, *copies])
    assert ids == ["EN_v", "EN_v+EN-B000001"]
    assert [(row.reason, row.document) for row in rejected] == [("duplicate", name) for name in ids]


def test_repeated_segments_of_mls_are_ignored_and_different_ones_are_reported(tmp_path):
    rows = [(f"1_2_{n:06d}", "rec", float(n), f"text {n}", CLIP) for n in range(3)]
    folder = mls.write_corpus(tmp_path, {"train": rows}, rate=RATE) / "mls_german/train"
    segments = folder / "segments.txt"
    lines = segments.read_text().splitlines(keepends=True)
    segments.write_text("".join([lines[0], lines[0], *lines[1:], lines[2].replace("2.00", "2.10")]))
    items = list(find_reader("mls").read([folder / "transcripts.txt"]))
    texts = [u.text for i in items if isinstance(i, DocumentSource) for u in i.utterances]
    (bad,) = (item for item in items if not isinstance(item, DocumentSource))
    assert sorted(texts) == ["text 0", "text 1", "text 2"]
    assert bad.reason == "conflicting_duplicate"
    assert bad.where.endswith("segments.txt:5") and "segments.txt:4" in bad.message


def test_a_row_of_seed_tts_with_a_line_end_in_its_text_is_rejected(tmp_path):
    items = [("p", "Prompt.", CLIP, f"p-{n}", f"Said {n}", CLIP) for n in range(3)]
    path = seed_tts_eval.write_corpus(tmp_path, items)
    path.write_text(path.read_text().replace("Said 1", "Said\n1"))
    found = list(find_reader("seed_tts_eval").read([path]))
    assert [item.id for item in found if isinstance(item, DocumentSource)] == [
        f"seed_tts_eval/en/meta/p-{n}" for n in (0, 2)
    ]
    assert [item.where for item in found if not isinstance(item, DocumentSource)] == [
        "en/meta.lst:2",
        "en/meta.lst:3",
    ]
