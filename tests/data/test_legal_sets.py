"""The legal set of every position in a window is that of the whole stream before it."""

import numpy as np
import pytest

from soda_jax.data.dataset import make_dataset
from soda_jax.data.legal import NO_SET
from soda_jax.data.loader import Loader
from soda_jax.tokens.documents import View, render
from soda_jax.tokens.partition import joint_sets, partition

LENGTH = 64
VIEWS = [("S+A+T", 0), ("S+A+T", 2), ("S+A+T", 1), ("S+A", 0), ("S", 0), ("text", 0)]


def settings(path, **source):
    return {"sequence_length": LENGTH, "sources": {"a": {"path": str(path), **source}}}


def open_windows(path, **options):
    source = {name: options.pop(name) for name in tuple(options) if name not in ("split",)}
    return make_dataset(settings(path, **source), one_pass=True, legal_sets=True)


def whole_stream(content, views, layout):
    """All tokens of the documents, and the legal set after each, from one pass of the automaton."""
    tokens = np.concatenate([render(u, view, layout) for view in views for u in content.values()])
    codebooks = views[0].shown_codebooks(layout) if views[0].has_audio else 0
    rules = partition(layout, codebooks)
    states = rules.states(tokens, rules.rules.start)
    return tokens, rules.joint_numbers[rules.set_of_state[states]], states


@pytest.mark.parametrize("composition,codebooks", VIEWS)
@pytest.mark.parametrize("order", ["text_first", "audio_first", "both"])
def test_a_window_has_the_sets_of_the_whole_stream(
    tmp_path, write, speech, layout, order, composition, codebooks
):
    content = speech(20)
    dataset = open_windows(
        write(tmp_path, content), order=order, composition=composition, codebooks=codebooks
    )
    orders = ("text_first", "audio_first") if order == "both" else (order,)
    if composition != "S+A+T":
        orders = ("text_first",)
    _, sets, states = whole_stream(
        content, [View(o, composition, codebooks) for o in orders], layout
    )
    assert dataset.windows * LENGTH > 1000 or composition in ("S", "text")
    for number in range(dataset.windows):
        found = dataset.window(number).legal_set[0]
        first = number * LENGTH
        np.testing.assert_array_equal(found[:-1], sets[first : first + LENGTH - 1])
        assert found[-1] == NO_SET
    # A window may begin at any token, for example if the sequence length is changed.
    source = dataset.sources[0]
    for start in range(1, source.tokens):
        rules, state = source.state(start)
        expected = states[start - 1]
        if expected == rules.rules.end:
            expected = rules.rules.start
        assert state == expected, start


def test_a_window_of_text_documents_has_the_sets_of_the_whole_stream(
    tmp_path, write, text_only, layout
):
    content = text_only()
    dataset = open_windows(write(tmp_path, content, kind="text"), composition="text")
    tokens, sets, _ = whole_stream(content, [View("text_first", "text")], layout)
    for number in range(dataset.windows):
        batch = dataset.window(number)
        first = number * LENGTH
        np.testing.assert_array_equal(batch.tokens[0], tokens[first : first + LENGTH])
        np.testing.assert_array_equal(batch.legal_set[0, :-1], sets[first : first + LENGTH - 1])


@pytest.mark.parametrize("order", ["text_first", "audio_first"])
def test_sets_continue_after_a_masked_record(tmp_path, write, speech, layout, order):
    content = speech(20)
    path = write(tmp_path / "data", content)
    plain = open_windows(path, order=order)
    expected = np.concatenate([plain.window(k).legal_set[0] for k in range(plain.windows)])
    shard = plain.sources[0].manifest.splits["train"][0]
    for number in range(shard.records):
        (tmp_path / "masked.txt").write_text(f"{shard.file} {number}\n")
        masked = open_windows(path, order=order, mask_records=str(tmp_path / "masked.txt"))
        batches = [masked.window(k) for k in range(masked.windows)]
        found = np.concatenate([batch.legal_set[0] for batch in batches])
        kept = np.concatenate([batch.loss_mask[0] for batch in batches]) > 0
        assert kept.sum() < len(kept) - masked.windows or shard.records == 1
        np.testing.assert_array_equal(found[kept], expected[kept])
        assert (found[~kept] == NO_SET).all()


def test_no_set_is_more_frequent_than_its_period_allows(tmp_path, write, speech, layout):
    path = write(tmp_path, speech(40))
    sources = {
        "all": {"path": str(path)},
        "two": {"path": str(path), "codebooks": 2},
        "semantic": {"path": str(path), "composition": "S"},
    }
    config = {"sequence_length": LENGTH, "sources": sources}
    dataset = make_dataset(config, one_pass=True, legal_sets=True)
    sets, periods = joint_sets(layout, dataset.codebooks)
    counts = np.zeros((dataset.windows, len(sets)), int)
    for number in range(dataset.windows):
        found = dataset.window(number).legal_set[0]
        counts[number] = np.bincount(found[found != NO_SET], minlength=len(sets))
    most = np.array([-(-LENGTH // period) for period in periods])
    assert (counts <= most).all()
    # Windows inside long utterances reach it; their last position has no target.
    audio = [n for n, ids in enumerate(sets) if ids[-1][1] - layout.audio_base > 1]
    boundary = [n for n in audio if sets[n][0][0] == layout.audio_end]
    inside = [n for n in audio if sets[n][0][0] > layout.audio_base]
    assert len(boundary) == 1 and len(inside) == layout.codebooks - 1
    assert (counts.max(axis=0) >= most - 1)[boundary + inside].all()


def test_other_fields_do_not_depend_on_legal_sets(tmp_path, write, speech):
    path = write(tmp_path, speech())
    plain = make_dataset(settings(path), one_pass=True)
    extended = make_dataset(settings(path), one_pass=True, legal_sets=True)
    assert plain.digest == extended.digest
    left, right = plain.batch(0, range(3)).arrays(), extended.batch(0, range(3)).arrays()
    assert set(right) - set(left) == {"legal_set", "full_offset"}
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])


def test_the_offset_of_a_window_depends_on_its_number_and_the_seed(tmp_path, write, speech):
    path = write(tmp_path, speech())
    dataset = make_dataset(settings(path), legal_sets=True)
    offsets = dataset.batch(0, range(1000)).full_offset
    np.testing.assert_array_equal(dataset.batch(300, [5, 2]).full_offset, offsets[[305, 302]])
    other = make_dataset({**settings(path), "seed": 1}, legal_sets=True)
    assert (other.batch(0, range(1000)).full_offset != offsets).mean() > 0.99
    for every in (7, 31):
        counts = np.bincount(offsets % every, minlength=every)
        assert counts.min() > 1000 / every / 2 and counts.max() < 1000 / every * 2


def test_text_is_estimated_from_the_index(tmp_path, write, speech, text_only, layout):
    write(tmp_path / "s", speech(40))
    write(tmp_path / "t", text_only(20), kind="text")
    sources = {
        "speech": {"path": str(tmp_path / "s"), "weight": 0.7},
        "text": {"path": str(tmp_path / "t"), "weight": 0.3, "composition": "text"},
    }
    dataset = make_dataset({"sequence_length": LENGTH, "sources": sources}, legal_sets=True)
    for source in dataset.sources:
        tokens = np.zeros(source.tokens, np.int32)
        source.read(0, tokens)
        is_text = layout.ordinary_text[tokens]
        assert source.text_tokens(0, source.tokens) == pytest.approx(is_text.sum())
        starts = range(0, source.tokens - LENGTH, LENGTH)
        found = [source.text_tokens(start, start + LENGTH) for start in starts]
        exact = [is_text[start : start + LENGTH].sum() for start in starts]
        assert np.corrcoef(found, exact)[0, 1] > 0.9 or source.name == "text"


def test_balanced_rows_have_about_equal_text_and_are_a_permutation(
    tmp_path, write, speech, text_only, layout
):
    write(tmp_path / "s", speech(40))
    write(tmp_path / "t", text_only(20), kind="text")
    sources = {
        "speech": {"path": str(tmp_path / "s"), "weight": 7, "composition": "S+A"},
        "text": {"path": str(tmp_path / "t"), "weight": 1, "composition": "text"},
    }
    dataset = make_dataset({"sequence_length": LENGTH, "sources": sources}, legal_sets=True)
    # Every eighth window is text, so in stream order one group would get all of them.
    groups = [list(range(first, 64, 8)) for first in range(8)]
    plain, balanced = [], []
    for k in (0, 64, 640):
        rows = dataset.balanced_rows(k, 64, groups)
        assert sorted(rows) == list(range(64))
        np.testing.assert_array_equal(rows, dataset.balanced_rows(k, 64, groups))
        for order, found in ((range(64), plain), (rows.tolist(), balanced)):
            text = layout.ordinary_text[dataset.batch(k, order).tokens].sum(axis=1)
            found.append(text.reshape(8, 8).sum(axis=0).max())
        # About six windows of text for eight groups: no group gets two.
        assert balanced[-1] <= LENGTH
    assert sum(balanced) < sum(plain)
    with Loader(dataset, 64, 64, [3, 9], groups=groups) as loader:
        rows = dataset.balanced_rows(64, 64, groups)[[3, 9]]
        np.testing.assert_array_equal(
            next(loader)["tokens"], dataset.batch(64, rows.tolist()).tokens
        )
