"""Every reader yields the same utterances for the same content, unpacked and in archives."""

import bz2
import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from soda_jax.errors import UserError
from tokenize_pipeline.admission import Admission
from tokenize_pipeline.readers import DocumentSource, find_reader
from tokenize_pipeline.text_faults import text_fault

Rows = list[tuple[int, str | bytes]]  # (number of the utterance, its text)


def raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def lines(rows: Rows, line, *, head: bytes = b"", end: bytes = b"\n") -> bytes:
    return head + b"".join(line(number, raw(text)) + end for number, text in rows)


def store(folder: Path, files: dict[str, bytes], archive: str = "") -> Path:
    """Writes files, or a tar of them as written by macOS, with an AppleDouble file for each."""
    if not archive:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            before, slash, last = name.rpartition("/")
            for each, data in ((f"{before}{slash}._{last}", b"\0\5\x16\7"), (name, content)):
                info = tarfile.TarInfo(f"./{each}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    packed = stream.getvalue()
    path = folder / archive
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(packed) if archive.endswith("gz") else packed)
    return path


def write_librispeech(folder, rows, archive, **options):
    base = "LibriSpeech/dev-clean/84/1"
    table = lines(rows, lambda n, text: b"84-1-%04d " % n + text, **options)
    path = store(folder, {f"{base}/84-1.trans.txt": table}, archive)
    return path if archive else path / base / "84-1.trans.txt"


def write_mls(folder, rows, archive, **options):
    base = "mls_german/train"
    table = lines(rows, lambda n, text: b"1_2_%06d\t" % n + text, **options)
    numbers = sorted({number for number, _ in rows})
    times = lines([(n, "") for n in numbers], lambda n, _: b"1_2_%06d\tu\t%d\t%d.5" % (n, n, n))
    files = {f"{base}/transcripts.txt": table, f"{base}/segments.txt": times}
    path = store(folder, files, archive)
    return path if archive else path / base / "transcripts.txt"


def write_cvss(folder, rows, archive, *, translated=True, **options):
    """The rows are the English texts, or (not `translated`) the sentences of Common Voice."""
    numbers = dict.fromkeys(number for number, _ in rows)
    plain = [(number, "") for number in numbers]
    english = lines(rows if translated else plain, _clip, **(options if translated else {}))
    if translated:
        rows, options = plain, {}
    header = b"client_id\tpath\tsentence\tup_votes\n"
    voice = lines(rows, _sentence, **{**options, "head": options.get("head", b"") + header})
    if options.get("end") == b"\r\n":
        voice = voice.replace(header, header[:-1] + b"\r\n")
    voice_archive = "cv-corpus-4-2019-12-10/de.tar" if archive else ""
    at = folder if voice_archive else folder / "cv-corpus-4-2019-12-10/de"
    store(at, {"validated.tsv": voice}, voice_archive)
    name = "cvss_t_de_en_v1.0"
    path = store(
        folder if archive else folder / name, {"train.tsv": english}, archive and f"{name}.tar"
    )
    return path if archive else path / "train.tsv"


def _clip(number, text):
    return b"common_voice_de_%d.mp3\t" % number + text


def _sentence(number, text):
    return b"c\tcommon_voice_de_%d.mp3\t" % number + text + b"\t2"


def write_common_voice(folder, rows, archive, **options):
    return write_cvss(folder, rows, archive, translated=False, **options)


def write_seed_tts(folder, rows, archive, **options):
    base = "seedtts_testset/en"
    table = lines(rows, lambda n, text: b"%d|" % n + text + b"|p.wav|said", **options)
    path = store(folder, {f"{base}/meta.lst": table}, archive)
    return path if archive else path / base / "meta.lst"


def write_table(folder, rows, separator, suffix, *, head=b"", end=b"\n", quote=b""):
    columns = [b"audio", b"text", b"speaker"]
    header = head + separator.join(columns) + end
    content = lines(
        rows,
        lambda n, text: separator.join([b"%d.wav" % n, quote + text + quote, b"s"]),
        head=header,
        end=end,
    )
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(suffix).suffix, bytes)
    return store(folder, {f"m{suffix}": pack(content)}) / f"m{suffix}"


def write_csv(folder, rows, suffix, **options):
    return write_table(folder, rows, b",", suffix, quote=b'"', **options)


def write_tsv(folder, rows, suffix, **options):
    return write_table(folder, rows, b"\t", suffix, **options)


def json_text(text: bytes) -> bytes:
    """Returns a JSON string of the bytes, in which only the characters that JSON requires are escaped."""
    escape = {byte: b"\\u%04x" % byte for byte in (*range(1, 32), *b'"\\')}
    return b'"' + b"".join(escape.get(byte, bytes([byte])) for byte in text) + b'"'


def write_jsonl(folder, rows, suffix, **options):
    content = lines(
        rows,
        lambda n, text: b'{"audio": "%d.wav", "text": ' % n + json_text(text) + b"}",
        **options,
    )
    return store(folder, {f"m{suffix}": content}) / f"m{suffix}"


def write_text_jsonl(folder, rows, suffix, **options):
    content = lines(
        rows, lambda n, text: b'{"id": "%d", "text": ' % n + json_text(text) + b"}", **options
    )
    return store(folder, {f"t{suffix}": content}) / f"t{suffix}"


def write_plain(folder, rows, suffix, **options):
    return store(folder, {"t.txt": lines(rows, lambda n, text: text, **options)}) / "t.txt"


def write_parquet(folder, rows, suffix):
    table = {"id": [str(n) for n, _ in rows], "text": pyarrow.array([raw(t) for _, t in rows])}
    parquet.write_table(pyarrow.table(table), folder / "t.parquet")
    return folder / "t.parquet"


def write_emilia(folder, rows, suffix):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number, text in rows:
            name = f"EN_B0_S0_W{number:06d}"
            row = b'{"id": "%s", "text": ' % name.encode() + json_text(raw(text)) + b"}"
            for file, data in (
                (f"._{name}.mp3", b"x"),
                (f"{name}.mp3", b"x"),
                (f"{name}.json", row),
            ):
                info = tarfile.TarInfo(file)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "EN.tar").write_bytes(stream.getvalue())
    return folder / "EN.tar"


def write_yodas2(folder, rows, suffix, *, head=b""):
    captions = b", ".join(
        b'"v-%05d-%08d-%08d": ' % (n, 100 * n, 100 * n + 50) + json_text(raw(text))
        for n, text in rows
    )
    store(folder / "data/en000/audio", {}, "a.tar.gz")
    content = head + b'[{"audio_id": "v", "text": {' + captions + b"}}]"
    return store(folder / "data/en000/text", {"a.json": content}) / "a.json"


# (reader, writer, variant): unpacked or in an archive, plain or compressed
LINES = {
    "librispeech": ("librispeech", write_librispeech, ""),
    "librispeech tar": ("librispeech", write_librispeech, "a.tar"),
    "librispeech tar.gz": ("librispeech", write_librispeech, "a.tar.gz"),
    "mls": ("mls", write_mls, ""),
    "mls tar": ("mls", write_mls, "a.tar"),
    "cvss_t": ("cvss_t", write_cvss, ""),
    "cvss_t tar": ("cvss_t", write_cvss, "a.tar"),
    "common voice": ("cvss_t", write_common_voice, ""),
    "common voice tar": ("cvss_t", write_common_voice, "a.tar"),
    "seed_tts": ("seed_tts_eval", write_seed_tts, ""),
    "seed_tts tar": ("seed_tts_eval", write_seed_tts, "a.tar"),
    "csv": ("manifest", write_csv, ".csv"),
    "csv.gz": ("manifest", write_csv, ".csv.gz"),
    "tsv": ("manifest", write_tsv, ".tsv"),
    "tsv.gz": ("manifest", write_tsv, ".tsv.gz"),
    "tsv.bz2": ("manifest", write_tsv, ".tsv.bz2"),
    "jsonl": ("manifest", write_jsonl, ".jsonl"),
    "text jsonl": ("text", write_text_jsonl, ".jsonl"),
    "text": ("text", write_plain, ".txt"),
}
EVERY = {
    **LINES,
    "text parquet": ("text", write_parquet, ".parquet"),
    "emilia": ("emilia", write_emilia, ""),
    "yodas2": ("yodas2", write_yodas2, ""),
}
TAB_SEPARATED = [name for name in LINES if name.startswith(("cvss", "common", "tsv"))]
JSON = ["jsonl", "text jsonl", "emilia", "yodas2"]


def read(name, folder, rows, **options):
    """Returns (texts in order, rejected rows) of a plan, including the defects of texts that a worker finds."""
    reader, write, variant = EVERY[name]
    path = write(folder, rows, variant, **options)
    admission = Admission(find_reader(reader), [path], frozenset())
    found, texts = [], []
    first = [i for i in admission.first_pass(Counter()) if not isinstance(i, DocumentSource)]
    found += [(item.reason, item.message, item.where) for item in first]
    for item in admission.second_pass(Counter()):
        if not isinstance(item, DocumentSource):
            found.append((item.reason, item.message, item.where))
            continue
        for utterance in item.utterances:
            text = utterance.text.strip()
            fault = text_fault(text)
            if fault is None:
                texts.append(text)
            elif fault.reason != "empty_text":
                found.append((fault.reason, fault.message, utterance.where))
    if reader == "seed_tts_eval":
        texts = [text for text in texts if text != "said"]
    return texts, found


INSIDE = ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"]


@pytest.mark.parametrize("name", EVERY)
def test_a_row_ends_at_lf_only_and_the_text_is_unchanged(tmp_path, name):
    if name.startswith("csv"):
        texts = [f"one{c}two" for c in INSIDE] + ["naïve", "x, y", "it's"]
    else:
        texts = [f"one{c}two" for c in INSIDE] + ["naïve", '"all quoted"', '"no" he said', 'a "b']
    found, rejected = read(name, tmp_path, list(enumerate(texts)))
    assert (found, rejected) == (texts, [])


@pytest.mark.parametrize("options", [{"end": b"\r\n"}, {"head": b"\xef\xbb\xbf"}])
@pytest.mark.parametrize("name", LINES)
def test_crlf_and_a_byte_order_mark_are_accepted(tmp_path, name, options):
    rows = [(0, "zero"), (1, "one two"), (2, "three")]
    assert read(name, tmp_path, rows, **options) == (["zero", "one two", "three"], [])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("name", [n for n in LINES if not n.startswith(("csv", "jsonl", "text"))])
def test_a_row_with_a_line_end_in_its_text_is_rejected(tmp_path, name, end):
    rows = [(0, "zero"), (1, f"cut{end}off here"), (2, "two")]
    texts, rejected = read(name, tmp_path, rows)
    assert texts == ["zero", "two"]
    assert {reason for reason, *_ in rejected} == {"malformed_row"}


@pytest.mark.parametrize("name", TAB_SEPARATED)
def test_a_tab_in_a_text_is_a_malformed_row(tmp_path, name):
    texts, ((reason, message, _),) = read(name, tmp_path, [(0, "zero"), (1, "a\tb"), (2, "two")])
    assert (texts, reason) == (["zero", "two"], "malformed_row"), message


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("byte", "reason"), [(b"\0", "nul"), (b"\xe9", "invalid_utf8")])
def test_rows_with_nul_or_invalid_bytes_are_rejected_with_the_offset(tmp_path, name, byte, reason):
    texts, rejected = read(
        name, tmp_path, [(0, "zero"), (1, "né".encode() + byte + b"x"), (2, "two")]
    )
    assert texts == ["zero", "two"]
    ((found, message, _),) = rejected
    assert found == reason and "byte offset 3" in message


ENCODINGS = ["UTF-16-LE", "UTF-16-BE", "UTF-32-LE", "UTF-32-BE"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", LINES)
def test_the_error_of_text_in_another_encoding_has_its_name(
    tmp_path, monkeypatch, name, encoding, mark
):
    own = lines

    def encoded(*args, **options):
        return (mark + own(*args, **options).decode()).encode(encoding)

    monkeypatch.setitem(globals(), "lines", encoded)
    with pytest.raises(UserError, match=f"is {encoding} text: convert it to UTF-8, as in iconv"):
        read(name, tmp_path, [(n, f"It is line {n} of the text.") for n in range(200)])


def test_the_error_of_json_in_another_encoding_has_its_name(tmp_path):
    path = write_yodas2(tmp_path, [(1, "one")], "")
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(UserError, match="is UTF-16-LE text"):
        list(find_reader("yodas2").read([path]))
    row = json.dumps({"id": "EN_B0_S0_W000001", "text": "one"}).encode("utf-16-be")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in (("EN_B0_S0_W000001.json", row), ("EN_B0_S0_W000001.mp3", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    (bad,) = find_reader("emilia").read([tmp_path / "a.tar"])
    assert bad.reason == "invalid_utf8" and "UTF-16-BE" in bad.message


WITH_IDS = [name for name in EVERY if name != "text"]  # the ids of plain text are hashes


@pytest.mark.parametrize("name", WITH_IDS)
def test_an_exact_repeat_is_used_once_and_counted(tmp_path, name):
    texts, rejected = read(name, tmp_path, [(0, "zero"), (1, "one"), (1, "one"), (2, "two")])
    assert texts == ["zero", "one", "two"]
    # Common Voice describes clips, and CVSS-T lists the utterances. Repeated texts are only counted.
    silent = name.startswith(("text", "common"))
    assert [reason for reason, *_ in rejected] == ([] if silent else ["duplicate"])


@pytest.mark.parametrize("name", WITH_IDS)
def test_the_error_of_other_content_for_an_id_has_both_positions(tmp_path, name):
    texts, rejected = read(name, tmp_path, [(0, "zero"), (1, "one"), (2, "two"), (1, "other")])
    assert texts == ["zero", "one", "two"]
    ((reason, message, where),) = rejected
    assert reason == "conflicting_duplicate"
    if name == "emilia":
        assert "member 8" in message and "member 4" in message
    elif name == "yodas2":
        assert "(caption 2)" in message and where.endswith("(caption 4)")
    else:
        header = name.startswith(("csv", "tsv", "common"))
        position = where.rpartition(":")
        assert f"{position[0]}:{3 if header else 2}" in message
        assert position[2] == ("5" if header else "4")
