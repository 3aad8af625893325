"""The plan assigns the same documents to the same shards and positions each time."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_toys import write_manifest

from soda_jax.data.format.shards import document_hash
from soda_jax.errors import UserError
from tokenize_pipeline import planner
from tokenize_pipeline.plan import Plan, ShardPlan, read_documents
from tokenize_pipeline.planner import (
    SplitPlan,
    assign_shards,
    make_plan,
    shard_count,
    split_of,
    work_of,
)
from tokenize_pipeline.readers import DocumentSource, UtteranceSource, manifest
from tokenize_pipeline.tar_stream import is_compressed

SETTINGS = {"kind": "speech", "shards": 4, "validation_fraction": 0.2}


def plan(tmp_path, rows=None, name="plan", known=(), first=(0, 0), **changed) -> Plan:
    rows = rows or [
        {"audio": f"{n}.wav", "text": "t", "start": 0, "end": 1 + n % 7} for n in range(200)
    ]
    path = write_manifest(tmp_path / "m.jsonl", rows)
    return make_plan(
        tmp_path / name,
        0,
        manifest,
        [Path(path)],
        {**SETTINGS, **changed},
        data_root=str(tmp_path),
        known=known,
        first_numbers={"train": first[0], "validation": first[1]},
    )


def test_each_document_is_in_one_shard_in_the_order_of_the_corpus(tmp_path):
    made = plan(tmp_path)
    ids = {"train": [], "validation": []}
    for shard in made.shards:
        documents = list(read_documents(tmp_path / "plan", shard))
        assert len(documents) == shard.documents
        ids[shard.split] += [document.id for document in documents]
    wanted = [f"{n}.wav#0.0-{float(1 + n % 7)}" for n in range(200)]
    for split in ids:
        assert ids[split] == [name for name in wanted if split_of(name, 0.2) == split]
    assert 20 < len(ids["validation"]) < 60


def test_shards_are_balanced_by_expected_seconds(tmp_path):
    weights = [shard.weight for shard in plan(tmp_path).shards if shard.split == "train"]
    assert len(weights) == 4
    assert max(weights) - min(weights) <= 2 * 7


def test_the_same_corpus_and_settings_give_the_same_plan_bytes(tmp_path):
    one, two = plan(tmp_path), plan(tmp_path, name="again")
    assert one.digest == two.digest
    assert (tmp_path / "plan/plan.json").read_bytes() == (tmp_path / "again/plan.json").read_bytes()


def test_the_split_depends_only_on_the_id():
    # Constants: a changed hash would move held-out documents into training.
    found = [split_of(f"doc-{n}", 0.1) for n in range(40)]
    assert [n for n, split in enumerate(found) if split == "validation"] == PINNED
    assert split_of("doc-3", 0.0) == "train"
    assert split_of("doc-3", 1.0) == "validation"


PINNED = [int(n) for n in ["7", "19", "20", "21"]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=60), st.integers(1, 12))
def test_the_weights_of_shards_differ_by_at_most_one_document(weights, shards):
    shards_of = [shard for shard, _ in assign_shards(weights, shards, [True] * len(weights))]
    assert shards_of == sorted(shards_of)
    assert shards_of[0] >= 0 and shards_of[-1] < shards
    sums = np.bincount(shards_of, weights, minlength=shards)
    assert sums.max() <= sum(weights) / shards + max(weights) + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 100),
            st.lists(
                st.sampled_from(["a.tar.gz", "b.tgz", "c.tar", "d.tar.gz", "e.wav"]), max_size=2
            ),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 12),
)
def test_all_documents_of_a_compressed_archive_are_in_one_shard(documents, shards):
    split = SplitPlan(Path(), "train", 0)
    for number, (weight, names) in enumerate(documents):
        sounds = [UtteranceSource("t", name, member="m") for name in names]
        split.weigh(DocumentSource(str(number), (*sounds, UtteranceSource("t", "e.tgz"))), weight)
    weights = [weight for weight, _ in documents]
    starts = split.starts()
    placed = list(assign_shards(weights, shards, starts))
    assert [weight for _, weight in placed] == weights
    shards_of = [shard for shard, _ in placed]
    assert shards_of == sorted(shards_of) and shards_of[-1] < shards
    found: dict[str, set[int]] = {}
    for shard, (_, names) in zip(shards_of, documents, strict=True):
        for name in names:
            found.setdefault(name, set()).add(shard)
    assert all(len(found[name]) == 1 for name in found if name not in ("c.tar", "e.wav"))
    # Without compressed archives a shard may begin with any document.
    if not any(is_compressed(name) for _, names in documents for name in names):
        assert all(starts)


def test_work_is_estimated_from_times_then_metadata_then_file_size(tmp_path):
    (tmp_path / "a.wav").write_bytes(bytes(64_000))
    work = work_of("speech", str(tmp_path))

    def weight(**fields) -> float:
        return work(UtteranceSource("t", **fields))

    assert weight(audio="a.wav", seconds=7.5) == 7.5
    assert weight(audio="a.wav", seconds=7.5, start=1.0, end=3.5) == 2.5
    assert weight(audio="a.wav") == weight(audio="a.wav", start=0.0) == 2.0
    assert weight(audio="a.tar", member="m", seconds=4.0) == 4.0
    # For a member without metadata, not the size of the whole archive.
    (tmp_path / "a.tar").write_bytes(bytes(64_000_000))
    assert 1 <= weight(audio="a.tar", member="m") <= 60
    assert weight(audio="absent.wav") == weight(audio="a.wav", seconds=-1.0) == 0.0


def test_documents_with_null_fields_and_without_member_are_read(tmp_path):
    line = {"text": "t", "audio": "a.wav", "start": None, "end": 2.0, "speaker": None}
    content = json.dumps({"id": "d", "utterances": [{**line, "language": None, "where": "m:1"}]})
    (tmp_path / "train-00000.jsonl").write_text(content + "\n")
    digest = hashlib.sha256((content + "\n").encode()).hexdigest()
    shard = ShardPlan("train", 0, 1, 1, 2.0, digest)
    (document,) = read_documents(tmp_path, shard)
    assert document.utterances == (UtteranceSource("t", "a.wav", end=2.0, where="m:1"),)


def test_shard_numbers_are_consecutive_with_a_document_longer_than_a_shard(tmp_path):
    rows = [{"audio": f"{n}.wav", "text": "t", "end": 1000 if n == 3 else 1} for n in range(8)]
    made = plan(tmp_path, rows, validation_fraction=0.0)
    assert [shard.number for shard in made.shards] == list(range(len(made.shards)))


def test_repeated_and_known_documents_are_left_out_and_counted(tmp_path):
    rows = [{"audio": name, "text": "t"} for name in ("a", "b", "a", "c")]
    made = plan(tmp_path, rows, known={document_hash("b")}, first=(5, 2), validation_fraction=0.0)
    assert made.counts["repeated_in_input"] == 1
    assert made.counts["already_in_dataset"] == 1
    assert made.counts["documents"] == 2
    assert [shard.name for shard in made.shards] == ["train-00005", "train-00006"]


def test_the_number_of_shards_follows_from_the_work():
    auto = {"kind": "speech", "shards": 0, "validation_fraction": 0.1}
    assert shard_count([3600.0] * 1000, "train", auto) == 101
    assert shard_count([1.0] * 1000, "train", auto) == 8
    assert shard_count([1.0] * 3, "train", auto) == 3
    assert shard_count([1.0] * 3, "validation", {**auto, "shards": 20}) == 2


@pytest.mark.parametrize(
    "changed", [{"shards": 5}, {"validation_fraction": 0.3}, {"max_audio_seconds": 7}]
)
def test_another_setting_is_refused_by_name(tmp_path, changed):
    made = plan(tmp_path)
    made.check_same(dict(SETTINGS), made.inputs, tmp_path / "plan")
    with pytest.raises(UserError, match=f"--{next(iter(changed))} was .* remove"):
        made.check_same({**SETTINGS, **changed}, made.inputs, tmp_path / "plan")


def test_a_changed_input_is_refused_by_name(tmp_path):
    made = plan(tmp_path)
    other = [{**made.inputs[0], "sha256": "0"}]
    with pytest.raises(UserError, match=r"m\.jsonl has changed"):
        made.check_same(dict(SETTINGS), other, tmp_path / "plan")


def test_an_edited_plan_is_refused(tmp_path):
    plan(tmp_path)
    path = tmp_path / "plan/plan.json"
    path.write_text(path.read_text().replace('"number": 0', '"number": 9', 1))
    with pytest.raises(UserError, match=r"does not match the sha256.*remove .*plan and run again"):
        Plan.load(tmp_path / "plan")
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Plan.load(tmp_path / "plan")


def test_digests_of_large_inputs_cover_the_first_middle_and_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "FULL_DIGEST_BYTES", 1000)
    monkeypatch.setattr(planner, "DIGEST_PART_BYTES", 10)
    file = tmp_path / "archive.tar"

    def described(content: bytes) -> dict:
        file.write_bytes(content)
        return planner.describe_inputs([file])[0]

    small, large = bytes(1000), bytes(1001)
    assert described(small)["sha256"] == hashlib.sha256(small).hexdigest()
    assert described(large)["sha256"] == hashlib.sha256(bytes(30)).hexdigest()
    for offset in (0, 505, 1000):
        changed = bytearray(large)
        changed[offset] = 1
        assert described(bytes(changed)) != described(large)
    assert described(bytes(2000)) != described(large)
