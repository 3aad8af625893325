"""The YODAS2 reader on files in the published layout."""

import json
import shutil

import pytest
from corpora import yodas2 as corpus
from pipeline_toys import hum

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, yodas2

RATE = 8000
FIRST, SECOND = "Y65x5_9PNO8", "--_a-b-c-d-"  # with hyphens and underscores


def two_videos(folder, **changed):
    videos = {
        FIRST: [("One.", hum(0.5, rate=RATE)), ("Two, été.", hum(1.25, rate=RATE))],
        SECOND: [("Three", hum(0.75, rate=RATE))],
    }
    return corpus.write_corpus(folder, videos, rate=RATE, **changed)


def test_a_document_is_a_video_with_its_captions_in_time_order(tmp_path):
    path = two_videos(tmp_path)
    first, second = yodas2.read([path])
    assert [first.id, second.id] == [FIRST, SECOND]
    assert [u.text for u in first.utterances] == ["One.", "Two, été."]
    assert [(u.start, u.end) for u in first.utterances] == [(0.0, 0.5), (0.75, 2.0)]
    (caption,) = second.utterances
    assert (caption.audio, caption.member) == ("en000/audio/00000000.tar.gz", f"{SECOND}.wav")
    assert (yodas2.data_root([path]) / caption.audio).is_file()
    assert caption.language == "en"
    assert caption.where == f"en000/text/00000000.json:2:{SECOND}-00000-00000000-00000075"


def test_captions_are_sorted_by_time(tmp_path):
    path = two_videos(tmp_path)
    entries = json.loads(path.read_text())
    entries[0]["text"] = dict(reversed(entries[0]["text"].items()))
    entries[0]["text"][f"{FIRST}-00002-00000030-00000040"] = "Between"
    path.write_text(json.dumps(entries))
    texts = [u.text for u in next(iter(yodas2.read([path]))).utterances]
    assert texts == ["One.", "Between", "Two, été."]


def test_captions_without_text_or_length_are_skipped(tmp_path):
    more = {
        f"{FIRST}-00002-00003279-00003279": "no length",
        f"{FIRST}-00003-00000300-00000400": " \n",
    }
    path = two_videos(tmp_path, more=more)
    entries = json.loads(path.read_text())
    entries[1]["text"] = {f"{SECOND}-00000-00000000-00000075": ""}
    path.write_text(json.dumps(entries))
    (document,) = yodas2.read([path])
    assert [u.text for u in document.utterances] == ["One.", "Two, été."]


def test_a_caption_that_ends_before_it_begins_is_yielded_unchanged(tmp_path):
    path = two_videos(tmp_path, more={f"{SECOND}-00001-00000200-00000100": "backwards"})
    *_, document = yodas2.read([path])
    assert (document.utterances[-1].start, document.utterances[-1].end) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("a video", "not an object"),
        ({"text": {}}, "'audio_id' is missing"),
        ({"audio_id": "v", "text": ["a"]}, "'text' of video v is list"),
        ({"audio_id": "v", "text": {"v-00000-1": "a"}}, "has no times"),
        ({"audio_id": "v", "text": {"v-00000-00000000-00000100": None}}, "is None, not a string"),
    ],
)
def test_a_malformed_video_or_caption_is_rejected_and_the_others_are_kept(tmp_path, entry, part):
    path = two_videos(tmp_path)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entry, *entries]))
    bad, *good = yodas2.read([path])
    assert isinstance(bad, Rejected) and part in bad.message and bad.reason == "malformed_row"
    assert bad.where.startswith("en000/text/00000000.json:1")
    assert [document.id for document in good] == [FIRST, SECOND]


def test_shards_and_subsets_of_one_data_root_are_read_together(tmp_path):
    paths = [two_videos(tmp_path)]
    video = {"other": [("Auto", hum(0.5, rate=RATE))]}
    paths.append(corpus.write_corpus(tmp_path, video, subset="de100", shard="00000003", rate=RATE))
    documents = [item for item in yodas2.read(paths) if isinstance(item, DocumentSource)]
    assert documents[-1].utterances[0].audio == "de100/audio/00000003.tar.gz"
    assert documents[-1].utterances[0].language == "de"
    assert yodas2.data_root(paths) == tmp_path / "data"
    elsewhere = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", elsewhere)
    with pytest.raises(UserError, match="one folder of subsets"):
        list(yodas2.read([paths[0], elsewhere / "en000/text/00000000.json"]))


def test_the_error_of_a_missing_archive_has_its_path(tmp_path):
    path = two_videos(tmp_path)
    (tmp_path / "data/en000/audio/00000000.tar.gz").unlink()
    with pytest.raises(UserError, match=r"audio/00000000\.tar\.gz is missing.*download it too"):
        list(yodas2.read([path]))


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "[{", "{}"])
def test_the_error_of_a_file_that_is_not_a_list_of_videos_has_its_path(tmp_path, content):
    path = two_videos(tmp_path)
    path.write_text(content)
    with pytest.raises(UserError, match=r"text/00000000\.json (cannot be read|is not a list)"):
        list(yodas2.read([path]))
