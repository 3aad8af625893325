"""Sources, mixtures and batches: invariants 2 and 3."""

import itertools

import ml_collections
import numpy as np
import pytest

from soda_jax.data.dataset import documents, make_dataset, open_splits
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.loader import Loader
from soda_jax.errors import UserError
from soda_jax.tokens.documents import View, render

LENGTH = 64


def config(path, **source):
    return {"sequence_length": LENGTH, "seed": 3, "sources": {"a": {"path": str(path), **source}}}


def stream(dataset):
    """All tokens of a single pass, without the dropped tail."""
    return np.concatenate([dataset.window(k).tokens[0] for k in range(dataset.windows)])


def whole(documents, views, layout):
    parts = [render(u, view, layout) for view in views for u in documents.values()]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "composition,codebooks", [("S+A+T", 0), ("S+A+T", 2), ("S+A", 0), ("S", 0), ("text", 0)]
)
@pytest.mark.parametrize("order", ["text_first", "audio_first", "both"])
def test_invariant_2_a_source_is_its_whole_documents_under_the_view(
    tmp_path, write, speech, layout, order, composition, codebooks
):  # fmt: skip
    content = speech()
    options = {"order": order, "composition": composition, "codebooks": codebooks}
    dataset = make_dataset(config(write(tmp_path, content), **options), one_pass=True)
    orders = ("text_first", "audio_first") if order == "both" else (order,)
    if composition != "S+A+T":
        orders = ("text_first",)
    expected = whole(content, [View(o, composition, codebooks) for o in orders], layout)
    found = stream(dataset)
    np.testing.assert_array_equal(found, expected[: len(found)])
    summary = dataset.summary()["a"]
    assert summary["tokens"] == len(expected)
    assert summary["tail_tokens"] == len(expected) - len(found) < LENGTH


def test_invariant_2_text_documents_are_whole_without_markers(tmp_path, write, text_only, layout):
    content = text_only()
    path = write(tmp_path, content, kind="text")
    dataset = make_dataset(config(path, composition="text"), one_pass=True)
    found = stream(dataset)
    expected = whole(content, [View("text_first", "text")], layout)
    np.testing.assert_array_equal(found, expected[: len(found)])
    with pytest.raises(UserError, match="set it to 'text'"):
        make_dataset(config(path))


def test_invariant_2_excluded_documents_leave_no_token(tmp_path, write, speech, layout):
    content = speech()
    path = write(tmp_path / "data", content)
    denied = list(content)[1::3]
    (tmp_path / "denied.txt").write_text("\n".join([*denied, "not/in/this/set"]))
    options = {"exclude_documents": str(tmp_path / "denied.txt")}
    dataset = make_dataset(config(path, **options), one_pass=True)
    kept = {name: value for name, value in content.items() if name not in denied}
    expected = whole(kept, [View("text_first"), View("audio_first")], layout)
    found = stream(dataset)
    np.testing.assert_array_equal(found, expected[: len(found)])
    assert dataset.summary()["a"]["excluded_documents"] == len(denied)
    assert [d.document_id for d in documents([s.split for s in dataset.sources])] == list(kept)
    assert dataset.digest != make_dataset(config(path), one_pass=True).digest


def test_a_list_of_denied_ids_is_read_line_by_line_whatever_an_id_contains(tmp_path, write, speech):
    names = ["a\u2028b", "c\x85d", "e f"]
    path = write(tmp_path / "data", dict(zip([*names, "kept"], speech().values(), strict=False)))
    file = tmp_path / "denied.txt"
    options = config(path, exclude_documents=str(file))
    file.write_bytes(("\ufeff" + "\r\n".join(names)).encode())
    assert make_dataset(options, one_pass=True).summary()["a"]["excluded_documents"] == len(names)
    for encoding in ("utf-16", "utf-16-le", "utf-32-be"):
        file.write_bytes("\n".join(["abc", "def"]).encode(encoding))
        with pytest.raises(UserError, match=r"denied\.txt.* UTF-8"):
            make_dataset(options, one_pass=True)


def test_invariant_3_every_window_appears_once_an_epoch_in_a_new_order(tmp_path, write, speech):
    dataset = make_dataset(config(write(tmp_path, speech())))
    once = make_dataset(config(tmp_path), one_pass=True)
    expected = sorted(once.window(k).tokens.tobytes() for k in range(once.windows))
    epochs = [
        [dataset.window(e * once.windows + k).tokens.tobytes() for k in range(once.windows)]
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == expected
    assert epochs[0] != epochs[1] != epochs[2]


def test_invariant_3_batch_is_pure_function_of_window_count(tmp_path, write, speech, text_only):
    write(tmp_path / "s", speech())
    write(tmp_path / "t", text_only(), kind="text")
    sources = {
        "speech": {"path": str(tmp_path / "s"), "weight": 3.0},
        "text": {"path": str(tmp_path / "t"), "weight": 1.0, "composition": "text"},
    }
    settings = {"sequence_length": LENGTH, "seed": 5, "sources": sources}
    reversed_sources = dict(reversed(sources.items()))
    left = make_dataset(settings)
    right = make_dataset({**settings, "sources": reversed_sources})
    for k in (0, 7, 1000, 10**9):
        for a, b in zip(left.batch(k, range(4)), right.batch(k, range(4)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert left.digest == right.digest
    other = make_dataset({**settings, "seed": 6})
    assert other.digest != left.digest
    assert any(not np.array_equal(left.window(k).tokens, other.window(k).tokens) for k in range(9))


def test_invariant_3_batch_size_and_hosts_may_change_between_batches(tmp_path, write, speech):
    dataset = make_dataset(config(write(tmp_path, speech())))
    expected = dataset.batch(0, range(24)).tokens
    with Loader(dataset, 4) as loader:
        start = [next(loader)["tokens"] for _ in range(2)]
        consumed = loader.windows
    assert consumed == 8
    hosts = []
    for host in range(2):  # two hosts with the even and the odd rows of batches of 8
        rows = list(range(host, 8, 2))
        with Loader(dataset, 8, consumed, rows, threads=2, prefetch=3) as loader:
            hosts.append([next(loader)["tokens"] for _ in range(2)])
    rest = [np.stack(pair, 1).reshape(8, LENGTH) for pair in zip(*hosts, strict=True)]
    np.testing.assert_array_equal(np.concatenate([*start, *rest]), expected)


def test_segments_positions_classes_and_mask_describe_the_window(tmp_path, write, speech, layout):
    dataset = make_dataset(config(write(tmp_path, speech())))
    batch = dataset.batch(0, range(40))
    for row, tokens in enumerate(batch.tokens):
        segment, position = 1, 0
        for index, token in enumerate(tokens):
            assert batch.segment_ids[row, index] == segment
            assert batch.positions[row, index] == position
            position += 1
            if token == layout.eos:
                segment, position = segment + 1, 0
        np.testing.assert_array_equal(batch.target_class[row, :-1], layout.class_of_id[tokens[1:]])
    assert batch.segment_ids.max() > 2
    assert (batch.loss_mask[:, :-1] == 1).all() and (batch.loss_mask[:, -1] == 0).all()
    kinds = [str(array.dtype) for array in batch.arrays().values()]
    assert kinds == ["int32", "int32", "int32", "int8", "float32", "int32"]


def test_a_pass_ends_with_rows_without_loss(tmp_path, write, speech):
    dataset = make_dataset(config(write(tmp_path, speech())), one_pass=True)
    batch = dataset.batch(dataset.windows - 1, range(3))
    assert batch.loss_mask.sum(axis=1).tolist() == [LENGTH - 1, 0, 0]


def test_sources_are_mixed_by_weight(tmp_path, write, speech, text_only):
    write(tmp_path / "s", speech())
    write(tmp_path / "t", text_only(), kind="text")
    sources = {
        "text": {"path": str(tmp_path / "t"), "weight": 0.1, "composition": "text"},
        "b": {"path": str(tmp_path / "s"), "weight": 0.3, "order": "audio_first"},
        "c": {"path": str(tmp_path / "s"), "weight": 0.6},
    }
    dataset = make_dataset({"sequence_length": LENGTH, "sources": sources})
    assert dataset.source_names == ("b", "c", "text")
    assert dataset.weights == pytest.approx({"b": 0.3, "c": 0.6, "text": 0.1})
    for start in (0, 12_345):
        source = [dataset.batch(start, range(200)).source]
        shares = np.bincount(np.concatenate(source)) / 200
        np.testing.assert_allclose(shares, [0.3, 0.6, 0.1], atol=0.011)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_weight_that_is_not_finite_and_positive_is_refused(tmp_path, write, speech, weight):
    path = write(tmp_path, speech(2))
    with pytest.raises(UserError, match=r"sources\.a\.weight"):
        make_dataset(config(path, weight=weight))


def test_bad_settings_are_named(tmp_path, write, speech):
    path = write(tmp_path, speech(2))
    with pytest.raises(UserError, match="did you mean weight"):
        make_dataset(config(path, wieght=1.0))
    with pytest.raises(UserError, match=r"a\.path is missing"):
        make_dataset({"sources": {"a": {"weight": 1.0}}})
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        make_dataset({"sources": {}})
    with pytest.raises(UserError, match="order = 'sideways' must be one of"):
        make_dataset(config(path, order="sideways"))
    with pytest.raises(UserError, match="codebooks"):
        make_dataset(config(path, codebooks=4))
    with pytest.raises(UserError, match="less than one window of 99999"):
        make_dataset({**config(path), "sequence_length": 99_999})
    with pytest.raises(UserError, match="no validation split"):
        make_dataset(config(path), "validation")
    with pytest.raises(UserError, match="cannot read"):
        make_dataset(config(path, exclude_documents="nowhere.txt"))
    with pytest.raises(UserError, match="cannot read the manifest"):
        make_dataset(config(tmp_path / "nowhere"))


def test_sources_of_two_codecs_or_layouts_are_refused_with_both_named(
    tmp_path, write, speech, text_only
):
    for codec in ("x", "y"):
        write(tmp_path / codec, speech(3), codec=f"codec-{codec}")
    write(tmp_path / "t", text_only(), kind="text")
    sources = {name: {"path": str(tmp_path / name)} for name in ("x", "y")}
    text = {"path": str(tmp_path / "t"), "composition": "text"}
    with pytest.raises(UserError, match=r"source y has the codec codec-y, source x has codec-x"):
        make_dataset({"sequence_length": LENGTH, "sources": sources})
    with pytest.raises(UserError, match=r"source y has the codec codec-y, source x has codec-x"):
        make_dataset({"sequence_length": LENGTH, "sources": {"a": text, **sources}})
    both = make_dataset({"sequence_length": LENGTH, "sources": {"a": text, "x": sources["x"]}})
    assert both.front_end.codec == "codec-x"


def test_an_appended_generation_leaves_the_older_one_as_it_was(tmp_path, write, speech):
    write(tmp_path, speech(8, seed=0))
    running = make_dataset(config(tmp_path))
    before = [running.window(k).tokens.tobytes() for k in range(20)]
    write(tmp_path, speech(8, seed=1))
    resumed = make_dataset(running.config)
    assert resumed.digest == running.digest
    assert [resumed.window(k).tokens.tobytes() for k in range(20)] == before
    newest = make_dataset(config(tmp_path))
    assert newest.digest != running.digest
    assert newest.sources[0].tokens > running.sources[0].tokens
    assert newest.config.sources["a"].generation == 1
    assert Manifest.load(tmp_path, 0).digest == running.sources[0].manifest.digest


def test_a_config_of_ml_collections_gives_the_same_data(tmp_path, write, speech):
    plain = config(write(tmp_path, speech(3)))
    assert make_dataset(ml_collections.ConfigDict(plain)).digest == make_dataset(plain).digest


def test_held_out_documents_come_whole_and_in_order(tmp_path, write, speech):
    content = speech()
    write(tmp_path, content, split="validation")
    found = list(documents(open_splits(config(tmp_path))))
    assert [document.document_id for document in found] == list(content)
    for document, expected in zip(found, content.values(), strict=True):
        assert [u.text for u in document.utterances] == [u.text for u in expected]
        for left, right in zip(document.utterances, expected, strict=True):
            np.testing.assert_array_equal(left.text_ids, right.text_ids)
            np.testing.assert_array_equal(left.codes, right.codes)


def test_a_data_set_under_two_views_gives_each_held_out_document_once(tmp_path, write, speech):
    content = speech()
    write(tmp_path, content, split="validation")
    twice = config(tmp_path)
    first = next(iter(content))
    twice["sources"]["a"]["exclude_documents"] = str(tmp_path / "denied.txt")
    (tmp_path / "denied.txt").write_text(first + "\n")
    twice["sources"]["b"] = {"path": str(tmp_path), "codebooks": 1}
    found = [(document.source, document.document_id) for document in documents(open_splits(twice))]
    # What one view denies, the other still gives.
    assert found == [("a", name) for name in content if name != first] + [("b", first)]


def test_the_loader_counts_its_waiting_and_passes_errors_on(tmp_path, write, speech):
    dataset = make_dataset(config(write(tmp_path, speech(4))))
    with Loader(dataset, 2) as loader:
        for batch in itertools.islice(loader, 3):
            assert batch["tokens"].shape == (2, LENGTH)
        assert loader.windows == 6 and loader.waited >= 0
    for shard in (tmp_path / "train").glob("*.array_record"):
        shard.unlink()
    with (
        Loader(make_dataset(config(tmp_path)), 2) as loader,
        pytest.raises(UserError, match="missing"),
    ):
        next(loader)
    with pytest.raises(ValueError, match="rows"):
        Loader(dataset, 2, rows=[2])
