"""`soda inspect` on small data sets."""

import argparse
import re

import numpy as np
import pytest

from soda_jax.commands import inspect
from soda_jax.data.format.manifest import Manifest, tokens_by_view
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance, View, render
from soda_jax.tokens.vocabulary import VocabularyLayout


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_inspect_counts_the_tokens_of_each_view(tmp_path, write, speech, layout, capsys):
    content = speech()
    manifest = Manifest.load(write(tmp_path, content))
    counts = tokens_by_view(manifest.kind, layout.codebooks, manifest.totals("train"))
    for composition, count in counts.items():
        view = View("audio_first", composition)
        assert count == sum(len(render(u, view, layout)) for u in content.values())
    assert run(tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"{counts['S+A+T']:,} tokens in each order" in shown
    assert "hours of audio" in shown and "validation: empty" in shown


def test_inspect_prints_records_and_documents(tmp_path, write, speech, capsys):
    content = speech()
    write(tmp_path, content)
    name = "doc/0-1"
    assert run(tmp_path, f"--document={name}") == 0
    shown = capsys.readouterr().out
    assert repr(content[name][0].text) in shown and "closes" in shown
    last = Manifest.load(tmp_path).totals("train")["records"] - 1
    assert run(tmp_path, f"--record=train:{last}") == 0
    assert f"document {list(content)[-1]}" in capsys.readouterr().out
    for arguments, message in (
        (f"--record=train:{last + 1}", f"has {last + 1} records"),
        ("--record=nowhere:1", "is not SPLIT:NUMBER"),
        ("--document=doc/0-", "no document"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, arguments)


def test_inspect_verify_lists_what_is_damaged(tmp_path, write, speech, capsys):
    write(tmp_path, speech())
    assert run(tmp_path, "--verify") == 0
    path = tmp_path / "train" / "shard-00000.array_record"
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # within the second record
    path.write_bytes(data)
    assert run(tmp_path, "--verify") == 1
    assert "shard-00000.array_record 1\n" in capsys.readouterr().out


WORDS = ["the", "of", "and", "to", "in", "that", "was", "he", "for", "on", "which", "have", "this"]


def random_speech(rng, utterances):
    """5 s each at 150 words a minute and 1.3 ids a word, codes without any structure."""
    return [
        Utterance(
            " ".join(rng.choice(WORDS, 13)),
            rng.integers(0, 128_000, 17).astype(np.int32),
            rng.integers(0, 2048, (63, 8)).astype(np.uint16),
        )
        for _ in range(utterances)
    ]


def test_invariant_2_random_codes_take_at_most_one_and_a_half_bytes_a_token_in_all(
    tmp_path, capsys
):
    rng, layout = np.random.default_rng(0), VocabularyLayout.soda()
    view, documents, tokens = View(), 0, 0
    with ShardWriter(tmp_path / "train" / "shard-00000.array_record", layout) as writer:
        while tokens < 2_500_000:  # seven hours: what a shard is rounded up to is then small
            utterances = random_speech(rng, int(rng.integers(1, 200)))
            tokens += len(render(utterances, view, layout))
            for record in split_document(f"corpus/document-{documents:06d}", utterances, layout):
                writer.write(record)
            documents += 1
        info = writer.close()
    codec = {"name": "random", "fingerprint": "none", "sample_rate": 24_000, "frame_rate": 12.5}
    Manifest("speech", layout, codec, "random", {"train": (info,)}).save(tmp_path)
    stored = sum(path.stat().st_size for path in (tmp_path / "train").iterdir())
    assert stored / tokens <= 1.5
    assert run(tmp_path) == 0
    shown = re.search(r"([\d,]+) bytes with the index, ([\d.]+) per token", capsys.readouterr().out)
    assert int(shown[1].replace(",", "")) == stored
    assert float(shown[2]) == pytest.approx(stored / tokens, abs=1e-3)


def test_a_data_set_at_a_url_is_described_and_its_records_want_a_folder(
    tmp_path, write, speech, capsys
):
    url = f"file://{write(tmp_path, speech())}"
    assert run(url) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{url}: speech") and "documents" in out
    for option in ("--verify", "--record=train:0", "--document=doc/0-1"):
        with pytest.raises(UserError, match="is a URL: --verify, --record and --document read"):
            run(url, option)
