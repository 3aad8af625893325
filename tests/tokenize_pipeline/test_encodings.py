"""Encodings other than UTF-8 are recognized by their byte order mark or their NUL bytes."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soda_jax.errors import UserError
from tokenize_pipeline.readers import text
from tokenize_pipeline.readers._lines import HEAD_BYTES, other_encoding

ENCODINGS = ["UTF-16-LE", "UTF-16-BE", "UTF-32-LE", "UTF-32-BE"]
SAMPLES = {
    "English": "It is a sentence of the text.\n",
    "one word": "word",
    "Greek": "Αυτή είναι μια πρόταση.\n",
    "Russian": "Это предложение, и ещё одно.\r\n",
    "Hindi": "यह एक वाक्य है।\n",
    "Chinese": "这是一个句子。\n",
    "Japanese": "これは文です。 もう一つ。\n",
    "emoji": "🙂 👩‍👩‍👧 and words\n",
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("language", SAMPLES)
def test_text_of_any_language_is_recognized(language, encoding, mark):
    for count in (1, 3, 500):
        assert other_encoding((mark + SAMPLES[language] * count).encode(encoding)) == encoding


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("language", SAMPLES)
def test_utf8_is_not_another_encoding(language, mark):
    for count in (1, 3, 500):
        assert other_encoding((mark + SAMPLES[language] * count).encode()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        bytes(5000),
        b"hello world\n" + bytes(4000),
        b"hell\n" + bytes(40),
        bytes(512) + b"hello world\n" * 50,
        b"ab\0c\n",
        b"one\0two three\n" * 300,
        "caf\xe9 au lait\n".encode("latin-1") * 100,
        bytes(range(256)) * 20,
    ],
)
def test_stray_nuls_and_unknown_bytes_are_not_another_encoding(content):
    assert other_encoding(content) is None


@given(
    st.text("abc é字", min_size=20), st.sampled_from([" some words\n", "字 字字 字\n"]), st.data()
)
def test_utf8_with_one_nul_is_not_another_encoding(words, end, data):
    content = (words + end).encode()
    at = data.draw(st.integers(0, len(content)))
    assert other_encoding(content[:at] + b"\0" + content[at:]) is None


def test_an_encoding_is_recognized_if_the_head_ends_within_a_character():
    for encoding in ENCODINGS:
        for shift in range(4):
            sample = ("x" * shift + "🙂 and more\n" * HEAD_BYTES).encode(encoding)
            assert other_encoding(sample[:HEAD_BYTES]) == encoding
            assert other_encoding(sample) == encoding


def test_the_error_of_a_compressed_file_in_another_encoding_has_its_name(tmp_path):
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress("one\r\ntwo\r\n".encode("utf-16")))
    with pytest.raises(UserError, match=r"t\.txt\.gz is UTF-16-LE text: .*iconv -f UTF-16LE"):
        list(text.read([path]))


def test_utf16_after_utf8_affects_its_own_rows_only(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"first line\n" * 1000 + "second\r\n".encode("utf-16-le") + b"third\n")
    found = {u.text.strip() for d in text.read([path]) for u in d.utterances}
    assert "first line" in found and "second" not in found
