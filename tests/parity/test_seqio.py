"""seqio beside our own reading: the same documents, the same rates; its vocabularies as tokenizers."""

import itertools
import json

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")
sentencepiece = pytest.importorskip("sentencepiece")

from soda_jax.data.dataset import documents, make_dataset  # noqa: E402
from soda_jax.data.format.manifest import Manifest  # noqa: E402
from soda_jax.data.format.shards import ShardWriter  # noqa: E402
from soda_jax.data.format.splitting import split_document  # noqa: E402
from soda_jax.errors import UserError  # noqa: E402
from soda_jax.tokens.documents import Utterance  # noqa: E402
from soda_jax.tokens.text import load_tokenizer, make_layout  # noqa: E402
from tokenize_pipeline import seqio_support  # noqa: E402
from tokenize_pipeline.retext import retext  # noqa: E402

TEXTS = ["hello there", "a é語😀 b", "<s>one</s> two <pad><unk>", "say <|audio_start|> now", "x"]


def make_data_set(folder, kind, documents, seed):
    """A data set of random speech or text in bytes; records so short that long documents need several."""
    tokenizer, rng = load_tokenizer("bytes"), np.random.default_rng(seed)
    layout = make_layout(tokenizer, (7, 5))
    splits = {}
    for split, count in (("train", documents), ("validation", 2)):
        if kind == "text" and split == "validation":
            continue
        with ShardWriter(folder / split / "shard-00000.array_record", layout) as writer:
            for number in range(count):
                utterances = []
                for _ in range(1 if kind == "text" else 1 + number % 3):
                    text = " ".join(rng.choice(TEXTS, 1 + number % 5))
                    frames = 0 if kind == "text" else int(rng.integers(1, 20))
                    codes = (rng.random((frames, 2)) * layout.codebook_sizes).astype(np.uint16)
                    utterances.append(Utterance(text, tokenizer.encode(text), codes))
                for record in split_document(f"{split}/{number}", utterances, layout, 40):
                    writer.write(record)
            splits[split] = (writer.close(),)
    codec = {"name": "toy", "fingerprint": "x", "sample_rate": 16_000, "frame_rate": 12.5}
    codec = codec if kind == "speech" else None
    Manifest(kind, layout, codec, tokenizer.fingerprint, splits).save(folder)
    tokenizer.save(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Speech in both orders, its first codebook, and text."""
    folder = tmp_path_factory.mktemp("data")
    speech = make_data_set(folder / "speech", "speech", 11, 0)
    text = make_data_set(folder / "text", "text", 7, 1)
    return {
        "sequence_length": 16,
        "seed": 0,
        "sources": {
            "speech": {"path": speech, "weight": 3.0},
            "semantic": {"path": speech, "weight": 1.5, "composition": "S+A", "codebooks": 1},
            "text": {"path": text, "weight": 0.5, "composition": "text"},
        },
    }


@pytest.fixture
def mixture(config):
    """A registered mixture, taken off the registries afterwards."""
    yield seqio_support.register(config, "toy")
    seqio.MixtureRegistry.reset()
    seqio.TaskRegistry.reset()


def examples(provider, **options):
    settings = {"shuffle": False, "num_epochs": 1, **options}
    return [e["targets"] for e in provider.get_dataset(**settings).as_numpy_iterator()]


def own_stream(config, name, split="train"):
    """The tokens of a source as training reads them: by windows, without the short tail."""
    alone = {**config, "sources": {name: config["sources"][name]}}
    dataset = make_dataset(alone, split, one_pass=True)
    windows = [dataset.window(k).tokens[0] for k in range(dataset.windows)]
    return np.concatenate(windows), dataset.sources[0].tokens


@pytest.mark.parametrize("name", ["speech", "semantic", "text"])
def test_documents_are_token_for_token_those_of_our_own_reading(config, mixture, name):
    task = seqio.TaskRegistry.get(f"toy.{name}")
    for split in task.splits:
        found = examples(task, split=split)
        assert all(document.dtype == np.int32 for document in found)
        stream, tokens = own_stream(config, name, split)
        joined = np.concatenate(found)
        assert len(joined) == tokens
        np.testing.assert_array_equal(joined[: len(stream)], stream)
        eos = make_dataset(config).layout.eos
        assert [np.flatnonzero(d == eos).tolist() for d in found] == [[len(d) - 1] for d in found]
        assert task.num_input_examples(split) == len(found)
    both = 2 if name == "speech" else 1
    assert task.num_input_examples("train") == both * (7 if name == "text" else 11)
    assert set(task.splits) == ({"train"} if name == "text" else {"train", "validation"})


def test_rates_are_the_normalized_weights(config, mixture):
    dataset = make_dataset(config)
    assert {t.name for t in mixture.tasks} == {f"toy.{name}" for name in dataset.source_names}
    for name, weight in dataset.weights.items():
        assert mixture.get_rate(seqio.TaskRegistry.get(f"toy.{name}")) == pytest.approx(weight)
    assert mixture.total_rate == pytest.approx(1)


def test_the_mixture_draws_documents_by_its_rates(config, mixture):
    by_task = {t.name: {d.tobytes() for d in examples(t, split="train")} for t in mixture.tasks}
    drawn = mixture.get_dataset(split="train", shuffle=True, seed=1).as_numpy_iterator()
    counts = dict.fromkeys(by_task, 0)
    for example in itertools.islice(drawn, 2000):
        (task,) = (t for t, known in by_task.items() if example["targets"].tobytes() in known)
        counts[task] += 1
    for name, weight in make_dataset(config).weights.items():
        assert counts[f"toy.{name}"] / 2000 == pytest.approx(weight, abs=0.04)


def test_a_shuffled_epoch_has_every_document_once_in_an_order_of_its_seed(mixture):
    task = seqio.TaskRegistry.get("toy.speech")
    whole = examples(task, split="train")
    read = task.source.get_dataset

    def order(seed):
        found = read(split="train", shuffle=True, seed=seed).as_numpy_iterator()
        return [e["targets"].tobytes() for e in found]

    assert sorted(order(1)) == sorted(d.tobytes() for d in whole)
    assert order(1) == order(1) != order(2) != [d.tobytes() for d in whole]
    epochs = list(read(split="train", shuffle=True, seed=1).repeat(2).as_numpy_iterator())
    first, second = epochs[: len(whole)], epochs[len(whole) :]
    tokens = [[e["targets"].tobytes() for e in epoch] for epoch in (first, second)]
    assert tokens[0] != tokens[1] and sorted(tokens[0]) == sorted(tokens[1])


def test_a_sequence_length_cuts_long_documents_and_loses_no_token(mixture):
    task = seqio.TaskRegistry.get("toy.speech")
    whole = examples(task, split="train")
    pieces = examples(task, split="train", sequence_length={"targets": 16})
    assert max(map(len, whole)) > 16 == max(map(len, pieces))
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(whole))


def test_hosts_share_the_documents(mixture):
    task = seqio.TaskRegistry.get("toy.speech")
    shards = [
        examples(task, split="train", shard_info=seqio.ShardInfo(index=i, num_shards=3))
        for i in range(3)
    ]
    found = sorted(document.tobytes() for shard in shards for document in shard)
    assert found == sorted(document.tobytes() for document in examples(task, split="train"))


def test_excluded_documents_are_left_out_and_a_name_is_taken_once(config, tmp_path):
    (tmp_path / "denied.txt").write_text("train/0\ntrain/7\n")
    denied = {**config["sources"]["speech"], "exclude_documents": str(tmp_path / "denied.txt")}
    fewer = {**config, "sources": {"speech": denied}}
    try:
        mixture = seqio_support.register(fewer, "fewer")
        assert len(examples(mixture.tasks[0], split="train")) == 2 * 9
        with pytest.raises(UserError, match="has a mixture 'fewer' already"):
            seqio_support.register(config, "fewer")
    finally:
        seqio.MixtureRegistry.reset()
        seqio.TaskRegistry.reset()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """SentencePiece models: as T5 has them with and without bytes for rare characters, and with BOS."""
    folder = tmp_path_factory.mktemp("models")
    letters = "abcdefghijklmnopqrstuvwxyz<>/|_ "
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list(letters), 40)) for _ in range(300)]
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    kinds = {
        "t5": {**t5, "vocab_size": 400, "byte_fallback": True},
        "letters": {**t5, "vocab_size": 60, "user_defined_symbols": ["<sep>"]},
        "bos": {"pad_id": 3, "eos_id": 2, "unk_id": 0, "bos_id": 1, "vocab_size": 80},
        "no_eos": {"eos_id": -1, "vocab_size": 60},
    }
    for name, options in kinds.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / name),
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    return folder


@pytest.mark.parametrize("kind", ["bytes", "t5", "bos"])
def test_invariant_1_text_yields_ordinary_text_ids_only(models, kind):
    spec = "seqio:bytes" if kind == "bytes" else f"seqio:sentencepiece:{models}/{kind}.model"
    tokenizer = load_tokenizer(spec)
    layout = make_layout(tokenizer, (5, 3))
    assert not layout.ordinary_text[[tokenizer.bos, tokenizer.eos]].any()
    for text in [*TEXTS, "<pad>", "▁x", "a</s>" * 50, "<0x41><unk>"]:
        try:
            ids = tokenizer.encode(text)
        except UserError as error:
            assert kind == "bos" and "no ordinary ids" in str(error)  # it knows letters alone
            continue
        assert ids.dtype == np.int32 and len(ids)
        assert layout.ordinary_text[ids].all() and not np.isin(ids, tokenizer.specials).any()
        spiced = [tokenizer.bos, *ids.tolist(), tokenizer.eos, tokenizer.vocabulary_size + 3]
        assert tokenizer.decode(spiced) == tokenizer.decode(ids)
        if kind == "bytes":
            assert tokenizer.decode(ids) == text
    with pytest.raises(UserError, match="not valid Unicode"):
        tokenizer.encode("ok \ud800")


def test_ids_are_those_of_the_vocabulary_and_bos_is_none_of_them(models):
    path = f"{models}/t5.model"
    vocabulary, tokenizer = (
        seqio.SentencePieceVocabulary(path),
        load_tokenizer(f"seqio:sentencepiece:{path}"),
    )
    for text in ("hello there", "a é語😀 b"):
        assert tokenizer.encode(text).tolist() == vocabulary.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == vocabulary.decode(
            vocabulary.encode(text)
        )
    assert (tokenizer.bos, tokenizer.eos) == (vocabulary.vocab_size, 1)
    assert {0, 1, 2, tokenizer.bos} <= set(tokenizer.specials)
    with_bos = load_tokenizer(f"seqio:sentencepiece:{models}/bos.model")
    assert (with_bos.bos, with_bos.eos) == (1, 2)
    ours, theirs = load_tokenizer("seqio:bytes"), seqio.ByteVocabulary()
    assert ours.encode("é!").tolist() == theirs.encode("é!") == [0xC3 + 3, 0xA9 + 3, 0x21 + 3]
    assert (ours.bos, ours.eos, ours.vocabulary_size) == (259, 1, 260)


def test_characters_without_ids_are_refused_and_user_symbols_are_text(models):
    tokenizer = load_tokenizer(f"seqio:sentencepiece:{models}/letters.model")
    for text, unknown in (("☃", "☃"), ("abc☃ d☃", "☃"), ("a語語é", "é語")):
        with pytest.raises(UserError, match=f"no ordinary ids for '{unknown}'"):
            tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("a<sep>b")) == "a<sep>b"


@pytest.mark.parametrize("kind", ["bytes", "t5"])
def test_a_saved_vocabulary_is_read_back_without_its_origin(models, tmp_path, kind):
    (tmp_path / "gone.model").write_bytes((models / "t5.model").read_bytes())
    spec = "seqio:bytes" if kind == "bytes" else f"seqio:sentencepiece:{tmp_path}/gone.model"
    tokenizer = load_tokenizer(spec)
    tokenizer.save(tmp_path / "first")
    (tmp_path / "gone.model").unlink()
    (tmp_path / "first").rename(tmp_path / "kept")
    for place in (tmp_path / "kept", tmp_path / "kept" / "tokenizer.json"):
        again = load_tokenizer(place)
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.bos, again.eos, again.specials) == (
            tokenizer.bos,
            tokenizer.eos,
            tokenizer.specials,
        )
        assert again.encode("a b").tolist() == tokenizer.encode("a b").tolist()
    assert tokenizer.fingerprint != load_tokenizer("bytes").fingerprint


def test_specs_and_files_that_are_no_vocabulary_are_refused(models, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"soda": "seqio:unigrams"}))
    (tmp_path / "bad.model").write_bytes(b"no model")
    for spec, match in (
        ("seqio:words", "no tokenizer 'seqio:words'"),
        ("seqio:sentencepiece:", "no tokenizer"),
        (f"seqio:sentencepiece:{tmp_path}/none.model", "no SentencePiece model at"),
        (f"seqio:sentencepiece:{tmp_path}/bad.model", "is not a SentencePiece model"),
        (f"seqio:sentencepiece:{models}/no_eos.model", "has no EOS"),
        (tmp_path, "names tokenizer 'seqio:unigrams'"),
    ):
        with pytest.raises(UserError, match=match):
            load_tokenizer(spec)


def test_a_data_set_is_given_a_vocabulary_of_seqio(config, models, tmp_path):
    source = config["sources"]["speech"]["path"]
    manifest = retext(source, f"seqio:sentencepiece:{models}/t5.model", tmp_path / "again")
    tokenizer = load_tokenizer(tmp_path / "again" / "tokenizer")
    assert manifest.tokenizer_fingerprint == tokenizer.fingerprint
    path = {"path": str(tmp_path / "again")}
    again = make_dataset({"sequence_length": 16, "sources": {"speech": path}})
    for document in documents([source.split for source in again.sources]):
        for utterance in document.utterances:
            np.testing.assert_array_equal(utterance.text_ids, tokenizer.encode(utterance.text))
