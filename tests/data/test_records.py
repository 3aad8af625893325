"""Records: round trips, limits, damage."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_jax.data.format.bits import SLACK, BitPacking, packing
from soda_jax.data.format.records import (
    DamagedRecordError,
    RecordData,
    decode_record,
    encode_record,
)
from soda_jax.data.format.splitting import join_records, split_document
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

SODA = VocabularyLayout.soda()


def equal(left, right):
    return len(left) == len(right) and all(
        a.text == b.text
        and np.array_equal(a.text_ids, b.text_ids)
        and np.array_equal(a.codes, b.codes)
        and a.codes.dtype == b.codes.dtype == np.uint16
        for a, b in zip(left, right, strict=True)
    )


def random_utterance(rng, text, frames, sizes=SODA.codebook_sizes):
    ids = rng.integers(0, 128_000, len(text)).astype(np.int32)
    codes = (rng.random((frames, len(sizes))) * np.array(sizes)).astype(np.uint16)
    return Utterance(text, ids, codes)


@given(
    widths=st.lists(st.integers(1, 25), min_size=1, max_size=9),
    rows=st.integers(0, 40),
    prefix=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_range_of_rows_of_any_widths_unpacks(widths, rows, prefix, data):
    first = data.draw(st.integers(0, rows))
    last = data.draw(st.integers(first, rows))
    columns = data.draw(st.integers(1, len(widths)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = np.stack([rng.integers(0, 1 << width, rows) for width in widths], axis=1)
    bits = BitPacking(widths)
    packed = bits.pack(values)
    assert len(packed) == bits.size(rows) == -(-rows * sum(widths) // 8)
    buffer = b"\xff" * prefix + packed + b"\xff" * SLACK
    found = bits.unpack(buffer, prefix, first, last, columns)
    np.testing.assert_array_equal(found, values[first:last, :columns])


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=5
    ),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=9),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_record_is_read_back_as_written(texts, name, sizes, seed):
    rng = np.random.default_rng(seed)
    layout = dataclasses.replace(SODA, codebook_sizes=tuple(sizes))
    utterances = [random_utterance(rng, text, int(rng.integers(1, 9)), sizes) for text in texts]
    record = RecordData(name, utterances, first=bool(seed & 1), last=bool(seed & 2))
    found = decode_record(encode_record(record, layout), layout)
    assert equal(found.utterances, utterances)
    assert (found.document_id, found.flags, found.part) == (name, record.flags, "whole")


@given(
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=6),
    limit=st.integers(8, 300),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_document_of_any_length_is_cut_and_joined_again(sizes, limit, seed):
    rng = np.random.default_rng(seed)
    utterances = [random_utterance(rng, "x語" * n, frames) for n, frames in sizes]
    records = split_document("long", utterances, SODA, limit)
    for record in records:
        tokens = sum(len(u.text_ids) + len(u.codes) * 8 for u in record.utterances)
        assert tokens <= limit
    stored = [decode_record(encode_record(record, SODA), SODA) for record in records]
    assert equal(join_records(stored), utterances)
    assert [r.first for r in stored] == [True] + [False] * (len(stored) - 1)
    assert [r.last for r in stored] == [False] * (len(stored) - 1) + [True]


def test_a_text_document_is_cut_and_joined_again():
    utterance = random_utterance(np.random.default_rng(0), "une phrase 😀 " * 500, 0)
    records = split_document("t", [utterance], SODA, 1000)
    assert len(records) == 7 and {record.part for record in records} == {"text"}
    assert not any(record.opens or record.closes for record in records)
    assert equal(join_records(records), [utterance])


def test_counts_over_65535_fit_in_a_record():
    rng = np.random.default_rng(0)
    record = RecordData("wide", [random_utterance(rng, "a" * 70_000, 1)])
    assert equal(decode_record(encode_record(record, SODA), SODA).utterances, record.utterances)


def test_invariant_2_random_speech_takes_at_most_one_and_a_half_bytes_a_token():
    rng = np.random.default_rng(0)
    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "that",
        "was",
        "he",
        "for",
        "on",
        "which",
        "have",
        "this",
    ]
    utterances = []
    for _ in range(16):  # 5 s at 150 words a minute, 1.3 ids a word, codes without any structure
        text = " ".join(rng.choice(words, 13))
        utterances.append(
            Utterance(
                text,
                rng.integers(0, 128_000, 17).astype(np.int32),
                rng.integers(0, 2048, (63, 8)).astype(np.uint16),
            )
        )
    size = len(encode_record(RecordData("corpus/document-000001", utterances), SODA))
    assert size / (16 * (4 + 17 + 63 * 8)) <= 1.5


@given(offset=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_noticed(offset, bit):
    record = RecordData("d", [random_utterance(np.random.default_rng(1), "some words", 9)])
    data = bytearray(encode_record(record, SODA))
    data[offset % len(data)] ^= 1 << bit
    with pytest.raises(DamagedRecordError):
        decode_record(bytes(data), SODA)


@pytest.mark.parametrize("length", [0, 10, 60])
def test_a_cut_record_is_noticed(length):
    record = RecordData("d", [random_utterance(np.random.default_rng(1), "some words", 9)])
    with pytest.raises(DamagedRecordError, match="checksum"):
        decode_record(encode_record(record, SODA)[:length], SODA)


def test_invariant_1_only_ordinary_text_and_codes_inside_their_codebooks_are_stored():
    good = random_utterance(np.random.default_rng(0), "abc", 20)
    codes = good.codes.copy()
    codes[17, 3] = 2051
    with pytest.raises(UserError, match=r"codes\[17, 3\] = 2051 is outside codebook 3 \(0–2047\)"):
        encode_record(RecordData("yodas-en/abc", [dataclasses.replace(good, codes=codes)]), SODA)
    for bad in (128_000, 128_257, 130_000, -1):
        ids = np.array([5, bad, 5], np.int32)
        with pytest.raises(UserError, match="yodas-en/abc"):
            encode_record(
                RecordData("yodas-en/abc", [dataclasses.replace(good, text_ids=ids)]), SODA
            )


def test_an_utterance_with_a_side_missing_is_refused():
    rng = np.random.default_rng(0)
    mixed = [random_utterance(rng, "a", 3), random_utterance(rng, "b", 0)]
    with pytest.raises(UserError, match="document d"):
        split_document("d", mixed, SODA)
    with pytest.raises(UserError, match="document d"):
        encode_record(RecordData("d", mixed), SODA)
    with pytest.raises(UserError, match="not valid Unicode"):
        encode_record(RecordData("d", [random_utterance(rng, "\ud800", 3)]), SODA)


def test_packings_are_shared():
    assert packing((2048,) * 8) is packing((2048,) * 8)
    assert packing((2048,) * 8).row_bits == 88
