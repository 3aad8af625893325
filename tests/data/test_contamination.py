"""Utterances of an evaluation set in training data: what is found, where, and what is denied."""

import argparse
import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soda_jax.commands import inspect
from soda_jax.data.checks.contamination import NGRAM, SHARE, find_contamination
from soda_jax.data.checks.ngram_search import words
from soda_jax.data.dataset import make_dataset
from soda_jax.data.format.reading import ShardReaders
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance

SENTENCE = "In the beginning there was a small boat, and nobody knew whose it was."
OTHER = "Twelve men went over the hill to look for water before the sun came up again."


def speech(**texts):
    """Documents of utterances with these texts; ids and codes are of no matter here."""
    codes = np.ones((2, 3), np.uint16)
    return {
        name: [Utterance(text, np.full(max(len(text), 1), 7, np.int32), codes) for text in lines]
        for name, lines in texts.items()
    }


@pytest.fixture
def compare(tmp_path, write):
    """compare(train, evaluation, …): documents by name to what is found."""
    numbers = itertools.count()

    def run(train, evaluation, **options):
        folder = tmp_path / str(next(numbers))
        write(folder / "train", speech(**train))
        write(folder / "eval", speech(**evaluation))
        return find_contamination(folder / "train", folder / "eval", **options)

    return run


def test_words_are_lower_case_without_punctuation():
    assert words(" It’s THE cat's—twenty-one “ÉTÉ”, 3.5_x!") == [
        *("its", "the", "cats", "twenty", "one", "été", "3", "5", "x")
    ]


def test_a_transcript_is_found_with_its_document_in_any_spelling(compare):
    train = {"a": [OTHER], "b": ["yes", f"and so: {SENTENCE.upper()}"], "c": ["no"]}
    found = compare(
        train, {"e": [OTHER.upper().replace(",", " –"), "quite other words " * 4], "f": [SENTENCE]}
    )
    first, second, third = found.utterances
    assert (first.share, first.train_document, first.train_utterance) == (1.0, "a", 0)
    assert (second.share, second.train_document, second.train_documents) == (0.0, None, 0)
    assert (third.share, third.train_document, third.train_utterance) == (1.0, "b", 1)
    assert found.excluded == ["a", "b"]
    assert (found.train_documents, found.train_utterances) == (3, 4)


def ngrams(texts, n):
    line = list(itertools.chain(*map(words, texts)))
    return {tuple(line[at : at + n]) for at in range(len(line) - n + 1)}


letters = st.sampled_from("abc")
lines = st.lists(st.lists(letters, max_size=12).map(" ".join), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    train=st.lists(lines, min_size=1, max_size=4),
    evaluation=st.lists(lines, min_size=1, max_size=3),
    n=st.integers(1, 4),
    share=st.sampled_from([0.3, 0.7, 1.0]),
)
def test_shares_are_those_of_sets_of_ngrams(compare, train, evaluation, n, share):
    named = {f"t{number}": texts for number, texts in enumerate(train)}
    found = compare(
        named,
        {f"e{number}": texts for number, texts in enumerate(evaluation)},
        ngram=n,
        share=share,
    )
    pools = {name: ngrams(texts, n) for name, texts in named.items()}
    denied = set()
    assert [u.text for u in found.utterances] == list(itertools.chain(*evaluation))
    for utterance in found.utterances:
        wanted = ngrams([utterance.text], n)
        if not wanted:
            alike = [
                name
                for name, texts in named.items()
                if words(utterance.text) and words(utterance.text) in list(map(words, texts))
            ]
            assert utterance.train_documents == len(alike)
            assert utterance.train_document == (alike[0] if alike else None)
            continue
        shares = {name: len(wanted & pool) / len(wanted) for name, pool in pools.items()}
        assert utterance.share == max(shares.values())
        assert utterance.share_anywhere == len(wanted & set().union(*pools.values())) / len(wanted)
        hits = {name for name, value in shares.items() if value >= share}
        assert utterance.train_documents == len(hits)
        denied |= hits
        if utterance.share:
            assert shares[utterance.train_document] == utterance.share
    assert set(found.excluded) == denied


def test_a_recording_that_is_split_at_other_times_is_found(compare):
    middle = len(SENTENCE) // 2
    found = compare({"t": ["Hear this.", SENTENCE[:middle].rsplit(" ", 1)[0], SENTENCE[middle:].strip()]},
                    {"e": [SENTENCE]}, share=0.2)  # fmt: skip
    assert found.utterances[0].train_utterance == 1
    whole = compare(
        {"t": ["Hear " + SENTENCE.split(" ", 1)[0], SENTENCE.split(" ", 1)[1]]}, {"e": [SENTENCE]}
    )
    assert (whole.utterances[0].share, whole.utterances[0].train_utterance) == (1.0, 0)


def test_an_utterance_in_pieces_is_put_together_again(compare):
    long = " ".join(f"{SENTENCE} {number}" for number in range(12))  # over the length of a record
    found = compare({"t": ["short", long, "after"], "u": [OTHER]}, {"e": [long, OTHER]})
    assert [(u.share, u.train_document, u.train_utterance) for u in found.utterances] == [
        (1.0, "t", 1),
        (1.0, "u", 0),
    ]
    assert found.train_utterances == 4


def test_documents_of_text_are_compared_like_speech(tmp_path, write):
    empty = np.zeros((0, 3), np.uint16)
    page = " ".join([OTHER] * 3 + [SENTENCE] + [OTHER] * 3)
    pages = {"page": [Utterance(page, np.full(len(page), 7, np.int32), empty)]}
    write(tmp_path / "train", pages, kind="text")
    write(tmp_path / "eval", speech(e=[SENTENCE]))
    assert find_contamination(tmp_path / "train", tmp_path / "eval").excluded == ["page"]


def test_short_utterances_are_compared_whole_and_deny_nothing(compare):
    found = compare(
        {"a": ["Thank you."], "b": ["thank you", "thank you all"]}, {"e": ["Thank you!", "…"]}
    )
    thanks, wordless = found.utterances
    assert (thanks.train_document, thanks.train_documents, wordless.train_documents) == ("a", 2, 0)
    assert (found.excluded, len(found.short()), len(found.long())) == ([], 1, 0)


def test_a_document_of_the_same_id_is_reported_and_denied(compare):
    found = compare({"84-1": ["nothing alike"], "x": ["or here"]}, {"84-1": [SENTENCE]})
    assert (found.same_ids, found.excluded, found.matches()) == (["84-1"], ["84-1"], [])


def test_ngrams_that_are_spread_over_documents_deny_none(compare):
    parts = SENTENCE.split()
    train = {"a": [" ".join(parts[:10])], "b": [" ".join(parts[3:])]}
    found = compare(train, {"e": [SENTENCE]}, share=0.8)
    assert found.utterances[0].share < 0.8 < found.utterances[0].share_anywhere == 1.0
    assert found.excluded == []


def test_a_damaged_record_is_counted_and_the_others_are_compared(tmp_path, write):
    write(tmp_path / "train", speech(a=[SENTENCE], b=[OTHER], c=["no"], d=["no"]))
    write(tmp_path / "eval", speech(e=[SENTENCE, OTHER]))
    shard = tmp_path / "train/train/shard-00000.array_record"
    content = bytearray(shard.read_bytes())
    content[content.index(ShardReaders().read(shard, 0, 2)) + 20] ^= 1
    shard.write_bytes(content)
    found = find_contamination(tmp_path / "train", tmp_path / "eval")
    assert found.damaged_records == 1
    assert found.excluded == ["b"]


def test_the_validation_split_of_a_data_set_is_compared_with_its_own_train_split(tmp_path, write):
    write(tmp_path, speech(a=[SENTENCE], b=["no"]))
    write(tmp_path, speech(v=[SENTENCE, OTHER]), split="validation")
    found = find_contamination(tmp_path, tmp_path)
    assert [u.train_document for u in found.utterances] == ["a", None]
    assert found.same_ids == []


def test_memory_does_not_grow_with_the_training_data(tmp_path, write):
    write(tmp_path / "eval", speech(e=[SENTENCE]))
    peaks, text = [], f"{OTHER} " * 4
    for documents in (10, 60):
        train = tmp_path / str(documents)
        write(train, speech(**{f"t{n}": [f"{text} {n}"] * 10 for n in range(documents)}))
        tracemalloc.start()
        assert find_contamination(train, tmp_path / "eval").train_documents == documents
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 50 * 10 * len(text) / 4


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_inspect_prints_a_table_and_writes_what_a_mixture_takes(tmp_path, write, capsys):
    train = write(tmp_path / "train", speech(a=[OTHER, "yes"], b=[SENTENCE], c=["no"] * 30))
    evaluation = write(
        tmp_path / "eval", speech(e=[SENTENCE, "yes", "never said by anyone in any place here"])
    )
    denied, report = tmp_path / "out/denied.txt", tmp_path / "out/found.jsonl"
    arguments = ["--contamination", train, evaluation, f"--output={denied}", f"--report={report}"]
    assert run(*arguments) == 1
    shown = capsys.readouterr().out
    assert "3 documents, 33 utterances of training data" in shown
    assert "3 utterances: 2 of 8 words or more, 1 shorter" in shown
    assert "1 of 2 (50.0%)" in shown and "1 of 1 (100.0%)" in shown
    assert f" 1.00  e [0] | b [0] | {SENTENCE[:40]!r}"[:-1] in shown
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(row["text"], row["train_document"]) for row in rows] == [(SENTENCE, "b"), ("yes", "a")]
    assert denied.read_text() == "b\n"
    source = {"path": str(train), "exclude_documents": str(denied)}
    summary = make_dataset({"sequence_length": 16, "sources": {"s": source}}).summary()
    assert summary["s"]["excluded_documents"] == 1
    clean = write(
        tmp_path / "clean", speech(x=["something else entirely that was never said before"])
    )
    assert run("--contamination", train, clean) == 0


def test_the_command_looks_by_the_defaults_of_the_search():
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    given = parser.parse_args(["--contamination", "a", "b"])
    assert (given.ngram, given.share) == (NGRAM, SHARE)


def test_wrong_arguments_are_one_line(tmp_path, write):
    train = write(tmp_path / "train", speech(a=[OTHER]))
    for arguments, message in (
        ([], "give one data set, or two"),
        ([train, "--contamination", train, train], "give one data set, or two"),
        ([train, "--output=x"], "need --contamination"),
        (["--contamination", train, train], "has no utterances"),
        (["--contamination", train, tmp_path / "absent"], "cannot read the manifest"),
        (["--contamination", train, train, "--ngram=0"], "--ngram=0 must be"),
        (["--contamination", train, train, "--share=1.5"], "--share=1.5 must be"),
    ):
        with pytest.raises(UserError, match=message):
            run(*arguments)


def test_an_id_that_is_no_line_is_refused_rather_than_denied_wrongly(tmp_path, write):
    train = write(tmp_path / "train", speech(**{"two\nlines": [SENTENCE]}))
    evaluation = write(tmp_path / "eval", speech(e=[SENTENCE]))
    with pytest.raises(UserError, match="has a line break"):
        run("--contamination", train, evaluation, f"--output={tmp_path / 'denied.txt'}")
