"""Damage is named, fatal by default, masked by policy, never silent."""

import logging

import numpy as np
import pytest

from soda_jax.checked_json import (
    DamagedError,
    checked_json,
    parse_checked_json,
    write_checked_json,
)
from soda_jax.data.dataset import documents, make_dataset
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.reading import ShardReaders, read_records
from soda_jax.data.format.records import DamagedRecordError
from soda_jax.data.format.shards import ShardWriter, read_index, read_shard_info
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.files import write_json

LENGTH = 64
SHARD = "shard-00001.array_record"


def settings(path, **more):
    source = {"path": str(path), "order": "text_first", **more.pop("source", {})}
    return {"sequence_length": LENGTH, "sources": {"a": source}, **more}


@pytest.fixture
def corpus(tmp_path, write, speech):
    return write(tmp_path / "data", speech())


def stream(dataset, field):
    return np.concatenate([getattr(dataset.window(k), field)[0] for k in range(dataset.windows)])


def flip_bit(corpus, layout, number):
    """Flips a bit in the middle of a record's bytes in its shard."""
    path = corpus / "train" / SHARD
    info = read_shard_info(path)
    record = ShardReaders().read(path, number, info.records)
    data = bytearray(path.read_bytes())
    offset = bytes(data).index(record) + len(record) // 2
    data[offset] ^= 4
    path.write_bytes(data)


def stretch(corpus, layout, number):
    """Returns the position of record `number` of the second shard in the text-first stream."""
    dataset = make_dataset(settings(corpus), one_pass=True)
    before = read_shard_info(corpus / "train" / "shard-00000.array_record").records
    starts = dataset.sources[0].record_starts
    return int(starts[before + number]), int(starts[before + number + 1])


def test_a_damaged_record_is_fatal_by_default_and_named(corpus, layout):
    flip_bit(corpus, layout, 2)
    dataset = make_dataset(settings(corpus), one_pass=True)
    with pytest.raises(
        DamagedRecordError, match=rf"{SHARD}, record 2 is damaged.*on_corrupt_record=mask"
    ):
        stream(dataset, "tokens")
    with pytest.raises(DamagedRecordError, match=rf"{SHARD}, record 2"):
        list(documents([s.split for s in dataset.sources]))


def test_invariant_3_a_masked_record_keeps_its_positions_and_loses_its_loss(
    corpus, layout, caplog
):  # fmt: skip
    sound = make_dataset(settings(corpus), one_pass=True)
    tokens, mask = stream(sound, "tokens"), stream(sound, "loss_mask")
    count = len(list(documents([s.split for s in sound.sources])))
    first, last = stretch(corpus, layout, 2)
    flip_bit(corpus, layout, 2)
    dataset = make_dataset(settings(corpus, on_corrupt_record="mask"), one_pass=True)
    with caplog.at_level(logging.WARNING):
        found = stream(dataset, "tokens")
    assert f"{SHARD}, record 2" in caplog.text and len(caplog.records) == 1
    assert dataset.damage() and f"{SHARD}, record 2" in dataset.damage()[0]
    outside = np.r_[0:first, last : len(tokens)]
    np.testing.assert_array_equal(found[outside], tokens[outside])
    assert (found[first:last] == layout.eos).all()
    new = stream(dataset, "loss_mask")
    lost = np.flatnonzero(mask != new)
    expected = [p for p in range(first - 1, last) if mask[p]]  # position p predicts token p + 1
    np.testing.assert_array_equal(lost, expected)
    assert len(list(documents([s.split for s in dataset.sources]))) == count - 1


def test_invariant_3_a_declared_mask_needs_no_damage_and_is_part_of_the_digest(
    corpus, layout, tmp_path
):
    (tmp_path / "masked.txt").write_text(f"{SHARD} 2\n")
    source = {"mask_records": str(tmp_path / "masked.txt")}
    declared = make_dataset(settings(corpus, source=source), one_pass=True)
    found = [stream(declared, field) for field in ("tokens", "loss_mask", "segment_ids")]
    assert declared.summary()["a"]["masked_records"] == 1
    plain = make_dataset(settings(corpus), one_pass=True)
    assert (
        len(list(documents([s.split for s in declared.sources])))
        == len(list(documents([s.split for s in plain.sources]))) - 1
    )
    assert declared.digest != make_dataset(settings(corpus), one_pass=True).digest
    flip_bit(corpus, layout, 2)
    met = make_dataset(settings(corpus, on_corrupt_record="mask"), one_pass=True)
    for field, values in zip(("tokens", "loss_mask", "segment_ids"), found, strict=True):
        np.testing.assert_array_equal(stream(met, field), values)
    for line in (f"{SHARD} 9999", "nowhere.array_record 0", "no number"):
        (tmp_path / "masked.txt").write_text(line)
        with pytest.raises(
            UserError, match=r"no record .* \(mask_records\)|write 'SHARD RECORD-NUMBER'"
        ):
            make_dataset(settings(corpus, source=source))


@pytest.mark.parametrize("damage", ["missing", "truncated", "emptied", "another shard"])
def test_a_shard_that_cannot_be_read_is_named_and_can_be_masked(corpus, layout, damage):
    path = corpus / "train" / SHARD
    if damage == "missing":
        path.unlink()
    elif damage == "another shard":
        path.write_bytes((corpus / "train" / "shard-00000.array_record").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "emptied" else 70_000])
    with pytest.raises(DamagedRecordError, match=f"{SHARD}, record 0"):
        stream(make_dataset(settings(corpus), one_pass=True), "tokens")
    masked = make_dataset(settings(corpus, on_corrupt_record="mask"), one_pass=True)
    assert 0 < stream(masked, "loss_mask").mean() < 0.9
    assert len(masked.damage()) == read_index(path.with_name("shard-00001.index.npz")).flags.size


def test_an_index_that_disagrees_with_its_shard_is_refused(corpus):
    folder = corpus / "train"
    index, other = folder / "shard-00001.index.npz", folder / "shard-00000.index.npz"
    good = index.read_bytes()
    index.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"shard-00001.index.npz is damaged: its crc32c"):
        make_dataset(settings(corpus))
    index.write_bytes(good[:100])
    with pytest.raises(UserError, match="not a shard index"):
        read_index(index)
    index.unlink()
    with pytest.raises(UserError, match="cannot read the index"):
        make_dataset(settings(corpus))


def test_invariant_10_a_pickle_in_an_index_is_not_read(corpus):
    index = corpus / "train" / "shard-00001.index.npz"
    np.savez(index, version=np.array([{"an": "object"}], object))
    with pytest.raises(UserError, match="not a shard index"):
        read_index(index)


def test_reading_a_shard_from_end_to_end_marks_the_damaged_record(corpus, layout):
    flip_bit(corpus, layout, 1)
    records = list(read_records(corpus / "train" / SHARD, layout))
    bad = [n for n, record in enumerate(records) if isinstance(record, DamagedRecordError)]
    assert bad == [1] and len(records) > 3


def test_the_number_of_open_files_is_bounded(tmp_path, write, speech, layout):
    for seed in range(3):
        write(tmp_path, speech(4, seed))
    readers = ShardReaders(max_open=2)
    for path in sorted((tmp_path / "train").glob("*.array_record")) * 2:
        readers.read(path, 0, read_shard_info(path).records)
        assert readers.open_files <= 2


def test_invariant_8_nothing_half_written_is_left(tmp_path, layout, speech):
    content = speech(2)
    path = tmp_path / "train" / "shard-00000.array_record"
    with pytest.raises(RuntimeError), ShardWriter(path, layout) as writer:
        for name, utterances in content.items():
            for record in split_document(name, utterances, layout):
                writer.write(record)
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    writer = ShardWriter(path, layout)
    for record in split_document("a", content["doc/0-1"], layout, 100)[:2]:
        writer.write(record)
    with pytest.raises(ValueError, match="not complete"):
        writer.close()
    assert list(path.parent.iterdir()) == []


def test_equal_documents_give_equal_bytes(tmp_path, write, speech):
    for name in ("one", "two"):
        write(tmp_path / name, speech())
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
            )


def test_a_manifest_of_another_version_or_edited_by_hand_is_refused(corpus):
    path = corpus / "manifest.json"
    good = parse_checked_json(path.read_bytes())
    for change, message in (
        ({"format_version": 99}, "format version 99, this program reads 2; tokenize the corpus ag"),
        ({"totals": {}}, "has inconsistent entries; restore it from the newest file in manifests/"),
        ({"splits": 3}, "not a valid manifest"),
        ({"front_end": {"tokenizer/tokenizer.json": 3}}, "not a valid manifest"),
    ):
        write_checked_json(path, {**good, **change})
        with pytest.raises(UserError, match=message):
            Manifest.load(corpus)
    # Of the release before, without a sha256; and one that was edited.
    write_json(path, {**good, "format_version": 1})
    with pytest.raises(
        UserError, match=r"damaged or of an older format.*tokenize the corpus again"
    ):
        Manifest.load(corpus)
    path.write_text(checked_json(good).replace('"generation": 0', '"generation": 1'))
    with pytest.raises(UserError, match="it does not match the sha256 at its end; restore it"):
        Manifest.load(corpus)
    write_checked_json(corpus / "manifests" / "0001.json", good)
    with pytest.raises(UserError, match=r"0001\.json contains generation 0"):
        Manifest.load(corpus, 1)


def test_every_flipped_bit_of_a_manifest_is_found_when_it_is_read(corpus):
    """By the one reader that training, inspect, evaluate, verify, append, retext and plan share."""
    path = corpus / "manifest.json"
    content = path.read_bytes()
    for offset in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[offset] ^= 1 << bit
            with pytest.raises(DamagedError):
                parse_checked_json(bytes(flipped))
    for offset in range(0, len(content), 29):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"manifest\.json: it is damaged.*restore it") as error:
            make_dataset({"sequence_length": 32, "sources": {"a": {"path": str(corpus)}}})
        assert "\n" not in str(error.value)


def test_a_generation_never_changes(corpus):
    manifest = Manifest.load(corpus)
    manifest.save(corpus)
    changed = Manifest("speech", manifest.layout, manifest.codec, "other", manifest.splits)
    with pytest.raises(UserError, match="exists and differs"):
        changed.save(corpus)
