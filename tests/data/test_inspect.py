"""`soda inspect` on small data sets."""

import argparse

import pytest

from soda_jax.commands import inspect
from soda_jax.data.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.tokens.documents import View, render


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_inspect_counts_the_tokens_of_each_view(tmp_path, write, speech, layout, capsys):
    content = speech()
    manifest = Manifest.load(write(tmp_path, content))
    counts = inspect.view_tokens(manifest, "train")
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
