"""The reader of CVSS-T: pairs of source and translation, each unpacked or in an archive."""

import tarfile

import pytest
from corpora import cvss_t as corpus
from pipeline_toys import hum, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import Rejected, cvss_t
from tokenize_pipeline.readers._corpus import seconds_of

CLIP = hum(0.3)
PAIRS = [(7, 'Das "ist" gut.', CLIP, "that is good", CLIP), (3, "Ja.", CLIP, "yes", CLIP)]
SPLITS = {"train": PAIRS, "test": [(5, "Nein.", CLIP, "no", CLIP)]}
EVERY = [pair for pairs in SPLITS.values() for pair in pairs]


def write(tmp_path, archive="", voice_archive="", **options):
    code = options.pop("code", "de")
    corpus.write_common_voice(tmp_path, EVERY, code=code, archive=voice_archive, rate=8000)
    return corpus.write_cvss(tmp_path, SPLITS, archive=archive, code=code, rate=8000, **options)


@pytest.mark.parametrize("voice_archive", ["", ".tar"])
@pytest.mark.parametrize("archive", ["", ".tar.gz", ".tar"])
def test_a_document_is_the_source_and_then_its_translation(tmp_path, archive, voice_archive):
    path = write(tmp_path, archive, voice_archive)
    path = path if archive else path / "train.tsv"
    assert cvss_t.data_root([path]) == tmp_path
    documents = list(cvss_t.read([path]))
    # The sounds in the archive are in reverse order of the table.
    names = ["cvss_t/de/train/common_voice_de_7", "cvss_t/de/train/common_voice_de_3"]
    assert [d.id for d in documents] == (names[::-1] if archive else names)
    document = next(d for d in documents if d.id == names[0])
    source, target = document.utterances
    assert (source.text, source.language) == ('Das "ist" gut.', "de")
    assert (target.text, target.language) == ("that is good", "en")
    assert (source.speaker, target.speaker) == ("client7", None)
    release = "cv-corpus-4-2019-12-10"
    if voice_archive:
        assert (source.audio, source.member) == (
            f"{release}/de.tar",
            "clips/common_voice_de_7.mp3",
        )
    else:
        assert (source.audio, source.member) == (
            f"{release}/de/clips/common_voice_de_7.mp3",
            None,
        )
    sound = "train/common_voice_de_7.mp3.wav"
    if archive:
        assert (target.audio, target.member) == (path.name, sound)
    else:
        assert (target.audio, target.member) == (f"cvss_t_de_en_v1.0/{sound}", None)
    for utterance in document.utterances:
        assert (tmp_path / utterance.audio).is_file()


def test_lengths_are_estimated_from_sizes_in_archives(tmp_path):
    pairs = [(n, "Ja.", hum(0.4 * n), "yes", hum(0.7 * n, rate=24_000)) for n in (1, 2, 3)]
    voice = corpus.write_common_voice(tmp_path, pairs, archive=".tar", rate=8000)
    path = corpus.write_cvss(tmp_path, {"train": pairs}, archive=".tar.gz", rate=24_000)
    with tarfile.open(voice) as archive:
        sizes = {member.name: member.size for member in archive}
    for document in cvss_t.read([path]):
        source, target = document.utterances
        number = int(document.id.rpartition("_")[2])
        assert target.seconds == pytest.approx(0.7 * number, abs=1e-4)
        assert source.seconds == seconds_of(source.member, sizes[source.member])


def test_any_unpacked_split_is_read_and_is_part_of_the_id(tmp_path):
    (document,) = cvss_t.read([write(tmp_path) / "test.tsv"])
    assert document.id == "cvss_t/de/test/common_voice_de_5"


def test_chinese_and_swedish_have_longer_codes_in_common_voice(tmp_path):
    path = write(tmp_path, language="zh", code="zh-CN")
    first, _ = cvss_t.read([path / "train.tsv"])
    source = first.utterances[0]
    assert source.audio.endswith("/zh-CN/clips/common_voice_zh-CN_7.mp3")
    assert (tmp_path / source.audio).is_file() and source.language == "zh"


def test_rows_without_a_source_or_a_text_are_rejected_and_the_others_are_kept(tmp_path):
    table = write(tmp_path) / "train.tsv"
    rows = ["common_voice_de_99.mp3\tnot in Common Voice", "no tab", "../x.mp3\tnot a clip", ""]
    table.write_text("\n".join(rows) + "\n" + table.read_text())
    items = list(cvss_t.read([table]))
    bad = [item for item in items if isinstance(item, Rejected)]
    assert sorted(row.where.rpartition(":")[2] for row in bad) == ["1", "2", "3"]
    assert {row.reason for row in bad} == {"malformed_row"}
    assert len(items) - len(bad) == 2


def test_the_error_of_a_missing_or_compressed_common_voice_has_the_fix(tmp_path):
    path = corpus.write_cvss(tmp_path, SPLITS, rate=8000) / "train.tsv"
    with pytest.raises(
        UserError, match=r"de/validated\.tsv and .*are missing.*Common Voice release 4"
    ):
        list(cvss_t.read([path]))
    packed = corpus.write_common_voice(tmp_path, EVERY, archive=".tar.gz", rate=8000)
    with pytest.raises(UserError, match=r"de\.tar\.gz: .* run gunzip"):
        list(cvss_t.read([path]))
    write_tar(packed.with_suffix(""), {"clips/x.mp3": b"x"})
    with pytest.raises(UserError, match=r"de\.tar has no validated\.tsv"):
        list(cvss_t.read([path]))
    table = tmp_path / "cv-corpus-4-2019-12-10/de/validated.tsv"
    table.parent.mkdir()
    table.write_text("client_id\tpath\ttext\n")
    with pytest.raises(UserError, match=r"no column 'sentence'"):
        list(cvss_t.read([path]))


def test_the_error_of_other_inputs_has_their_name(tmp_path):
    for name in ("train.tsv", "cvss_t_de_en_v1.0/train.txt", "cvss_c_de_en_v1.0.tar.gz"):
        with pytest.raises(UserError, match=f"{name} is neither"):
            list(cvss_t.read([tmp_path / name]))
    path = write_tar(tmp_path / "cvss_t_de_en_v1.0.tar.gz", {"dev.tsv": b""})
    with pytest.raises(UserError, match=r"has no train\.tsv"):
        list(cvss_t.read([path]))
