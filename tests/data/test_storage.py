"""Batches that are read by range or from staged copies equal those of the direct mode, or raise one error."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from gcs import FAULTS, start_server, upload
from storage_toys import (
    INDEX,
    SHARD,
    URL,
    assert_equal,
    batches,
)

from soda_jax.data.dataset import documents, make_dataset, open_splits
from soda_jax.data.format.records import DamagedRecordError
from soda_jax.data.format.shards import read_index
from soda_jax.data.storage import remote
from soda_jax.data.storage.cache import ByteCache
from soda_jax.data.storage.remote import RemoteFiles, ShortReadError, StoreError, download_folder
from soda_jax.errors import UserError

FAULTY_READS = ("failures", "resets", "short", "flips")


@pytest.mark.parametrize("storage", ["range", "stage"])
def test_batches_are_equal_in_every_storage_mode(corpus, settings, storage):
    expected = batches(settings(corpus, "direct"))
    assert_equal(batches(settings(URL, storage)), expected)
    # Staged files and indexes are not downloaded again.
    FAULTS.asked.clear()
    assert_equal(batches(settings(URL, storage)), expected)
    again = {name for name in FAULTS.asked if "index" in name or storage == "stage"}
    assert again <= {"data/manifest.json"}


@pytest.mark.parametrize("storage", ["range", "stage"])
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_batches_from_file_and_http_urls_equal_local_ones(corpus, settings, storage, scheme):
    url = f"file://{corpus}" if scheme == "file" else f"{start_server()}/bucket/data"
    assert_equal(batches(settings(url, storage)), batches(settings(corpus, "direct")))


def test_a_local_folder_can_be_read_by_range(corpus, settings):
    odd = corpus.rename(corpus.parent / "100% of ä b")
    assert_equal(batches(settings(odd, "range")), batches(settings(odd, "direct")))


@pytest.mark.parametrize("cache_bytes", [0, 500, 1 << 20])
def test_the_cache_changes_no_batch_and_respects_its_limit(corpus, settings, cache_bytes):
    expected = batches(settings(corpus, "direct"))
    dataset = make_dataset(settings(cache_bytes=cache_bytes))
    for number in range(12):
        found = dataset.batch(4 * number, range(4)).arrays()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name][4 * number : 4 * number + 4])
        assert dataset.storage._ranges.cache.size <= cache_bytes


def test_a_cached_record_is_not_read_again(corpus, settings):
    dataset = make_dataset(settings())
    dataset.batch(0, range(4))
    FAULTS.asked.clear()
    dataset.batch(0, range(4))
    assert not FAULTS.asked


def test_the_cache_evicts_the_least_recently_used_value():
    cache = ByteCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert cache.get("b") is None and cache.get("a") and cache.get("c")
    cache.put("a", b"12345678901")  # larger than the limit
    assert cache.get("a") is None and cache.size <= 4


def test_wrong_bytes_in_the_cache_are_read_again_from_the_store(corpus, settings):
    dataset = make_dataset(settings())
    expected = dataset.batch(0, range(4)).arrays()
    cache = dataset.storage._ranges.cache
    for key in list(cache._values):
        cache.put(key, b"\0" + cache.get(key)[1:])
    assert_equal(dataset.batch(0, range(4)).arrays(), expected)


def test_the_reads_of_a_batch_are_simultaneous_up_to_the_limit(corpus, settings):
    dataset = make_dataset(settings(read_concurrency=8, cache_bytes=0))
    dataset.batch(0, range(1))
    FAULTS.seconds, FAULTS.most_at_once = 0.05, 0
    FAULTS.asked.clear()
    dataset.batch(100, range(16))
    reads = sum(FAULTS.asked.values())
    assert reads > 10 and 7 <= FAULTS.most_at_once <= 9
    # Each record is read once although the cache is empty: the batch keeps what it has requested.
    again = make_dataset(settings(cache_bytes=1 << 30))
    FAULTS.asked.clear()
    again.batch(100, range(16))
    assert sum(FAULTS.asked.values()) == reads


def test_all_sources_share_the_limit_of_simultaneous_reads(corpus, settings):
    upload(corpus, "other")
    sources = {name: {"path": f"gs://bucket/{name}"} for name in ("data", "other")}
    dataset = make_dataset({**settings(read_concurrency=4), "sources": sources})
    FAULTS.seconds, FAULTS.most_at_once = 0.05, 0
    dataset.batch(0, range(16))
    # The server counts a read until its answer is sent, which overlaps with the next request.
    assert {name.split("/")[0] for name in FAULTS.asked} == {"data", "other"}
    assert 3 <= FAULTS.most_at_once <= 5


def test_documents_read_by_range_equal_local_ones(corpus, settings):
    expected = list(documents(open_splits(settings(corpus, "direct"), "train")))
    found = list(documents(open_splits(settings(), "train")))
    assert [d.document_id for d in found] == [d.document_id for d in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine.utterances, theirs.utterances, strict=True):
            np.testing.assert_array_equal(a.codes, b.codes)
            assert a.text == b.text


def test_invariant_3_the_location_of_the_data_does_not_change_the_digest(corpus, settings):
    digests = {
        make_dataset(settings(*where)).digest
        for where in ((corpus, "direct"), (URL, "stage"), (URL, "range"), (URL, "auto"))
    }
    assert len(digests) == 1


def test_auto_reads_paths_directly_and_urls_by_range(corpus, settings):
    assert not make_dataset(settings(corpus, "auto")).sources[0].split.prefetches
    assert make_dataset(settings(URL, "auto")).sources[0].split.prefetches
    assert make_dataset(settings(f"file://{corpus}", "auto")).sources[0].split.prefetches


@pytest.mark.parametrize("storage", ["stage", "range"])
@pytest.mark.parametrize("fault", FAULTY_READS)
def test_a_temporary_fault_changes_no_batch(corpus, settings, storage, fault):
    expected = batches(settings(corpus, "direct"))
    FAULTS.only = "array_record"
    # A record with a wrong byte is read once more.
    setattr(FAULTS, fault, 1 if fault == "flips" else 5)
    assert_equal(batches(settings(URL, storage)), expected)
    assert getattr(FAULTS, fault) == 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_repeated_requests_are_counted(corpus, status):
    files = RemoteFiles(3)
    assert files.repeated_reads == 0
    files.read(f"{URL}/manifest.json", 0, 9)
    FAULTS.failures, FAULTS.status = 2, status
    assert files.read(f"{URL}/manifest.json", 0, 9) == (corpus / "manifest.json").read_bytes()[:9]
    assert files.repeated_reads == 2


def test_a_slow_read_is_logged(corpus, monkeypatch, caplog):
    monkeypatch.setattr(remote, "_SLOW_SECONDS", 0.05)
    monkeypatch.setattr(remote, "_slow_reads", iter(range(1, 99)))
    FAULTS.seconds = 0.2
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            RemoteFiles(3).read(f"{URL}/manifest.json", 0, 9)
    (line,) = caplog.messages
    assert line.startswith(f"{URL}/manifest.json, bytes 0 to 9: no answer in")


@pytest.mark.parametrize("storage", ["stage", "range"])
@pytest.mark.parametrize("on_corrupt_record", ["fatal", "mask"])
def test_a_store_that_stays_unavailable_is_an_error_under_every_policy(
    corpus, settings, storage, on_corrupt_record
):
    FAULTS.only, FAULTS.failures = SHARD, 1 << 30
    config = settings(storage=storage, on_corrupt_record=on_corrupt_record, read_retries=3)
    message = rf"{URL}/train/{SHARD}, bytes \d+ to \d+: .*4 attempts.*Service Unavailable"
    with pytest.raises(StoreError, match=message):
        batches(config, 40)
    assert FAULTS.asked[f"data/train/{SHARD}"] >= 4


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "another shard"])
def test_lasting_damage_is_reported_with_url_and_record_and_can_be_masked(corpus, settings, damage):
    path = corpus / "train" / SHARD
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:100])
    elif damage == "another shard":
        path.write_bytes((corpus / "train" / "shard-00000.array_record").read_bytes())
    else:
        FAULTS.only, FAULTS.flips = SHARD, 1 << 30
    upload(corpus, "data")
    config = settings(read_retries=2)
    message = rf"{URL}/train/{SHARD}, record \d+ is damaged: .*restore the shard"
    with pytest.raises(DamagedRecordError, match=message):
        batches(config, 40)
    asked = FAULTS.asked[f"data/train/{SHARD}"]
    masked = make_dataset({**config, "on_corrupt_record": "mask"}, one_pass=True)
    masks = [masked.window(k).loss_mask for k in range(masked.windows)]
    assert 0 < np.mean(masks) < 1 and masked.damage()
    if damage in ("missing", "truncated"):  # an answer that is not repeated
        assert asked <= len(read_index(corpus / "train" / INDEX).flags)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"storage": "direct"}, r"gs://bucket/data is a URL .*range .*stage.*mount"),
        ({"storage": "stage", "cache_dir": ""}, "data.cache_dir"),
        ({"storage": "rang"}, "data.storage = 'rang' must be one of auto, direct, stage, range"),
        ({"cache_bytes": -1}, "data.cache_bytes = -1 must be an integer, at least 0"),
        ({"read_concurrency": 0}, "data.read_concurrency = 0"),
        ({"read_retries": "many"}, "data.read_retries = 'many'"),
    ],
)
def test_invalid_settings_are_refused_with_a_fix(corpus, settings, change, message):
    with pytest.raises(UserError, match=message):
        make_dataset({**settings(), **change})


@pytest.mark.parametrize(
    "url,message",
    [
        ("gs://bucket/nowhere", "gs://bucket/nowhere/manifest.json: cannot read the manifest"),
        (
            "gs://other-bucket/data",
            "gs://other-bucket/data/manifest.json: cannot read the manifest",
        ),
        ("gs://Bad_Name/data", r"gs://Bad_Name/data/: .*Invalid GCS bucket name.*use gs://"),
        (
            "az://data/a",
            r"az://data/a/: .*unsupported URL scheme \"az\".*; use gs://, s3://, .*or mount",
        ),
        ("file://relative/data", r"file://relative/data/: .*do not support authority.*; use"),
    ],
)
def test_a_wrong_url_is_reported(corpus, settings, url, message):
    with pytest.raises(UserError, match=message):
        make_dataset(settings(url))


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_request_is_not_repeated(corpus, settings, status):
    FAULTS.failures, FAULTS.status, FAULTS.only = 99, status, "manifest"
    with pytest.raises(StoreError, match=rf"gs://bucket/data/manifest.json: .*{status}.*may read"):
        make_dataset(settings())
    assert FAULTS.asked["data/manifest.json"] == 1


def test_a_file_that_is_too_short_is_reported_with_its_size(corpus):
    with pytest.raises(ShortReadError, match="bytes 900000 to 900009: the file is too short"):
        RemoteFiles().read(f"{URL}/train/{SHARD}", 900_000, 900_009)
    size = (corpus / "train" / SHARD).stat().st_size
    with pytest.raises(ShortReadError, match=f"size {size}"):
        RemoteFiles().read(f"{URL}/train/{SHARD}", 10, 900_009)


def run(program, *arguments, **variables):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_connection_without_data_is_dropped_and_the_request_repeated(corpus):
    program = (
        "from soda_jax.data.storage.remote import RemoteFiles; import sys\n"
        "print(len(RemoteFiles(3).read(sys.argv[1], 0, 9)))"
    )
    FAULTS.hangs = 1
    process = run(program, f"{URL}/manifest.json", TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS="1")
    assert process.communicate(timeout=30)[0] == b"9\n" and not FAULTS.hangs


@pytest.mark.parametrize("end", ["failure", "interrupt"])
def test_a_program_that_ends_does_not_wait_for_its_reads(corpus, settings, end):
    program = (
        "import json, sys\n"
        "from soda_jax.data.dataset import make_dataset\n"
        "dataset = make_dataset(json.loads(sys.argv[1]))\n"
        "reads = dataset.sources[0].prefetch(0, 500)\n"
        "print(len(reads), flush=True)\n"
        "sys.exit('failed') if sys.argv[2] == 'failure' else reads[0].result()"
    )
    FAULTS.only, FAULTS.hangs = "array_record", 1 << 30
    process = run(program, json.dumps(settings()), end)
    assert int(process.stdout.readline()) > 5
    deadline = time.monotonic() + 20
    while end == "interrupt" and process.poll() is None and time.monotonic() < deadline:
        # A signal that arrives just before the wait begins does not interrupt it, as with any lock of
        # CPython; the next one does.
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=20)[1]
    assert (b"KeyboardInterrupt" if end == "interrupt" else b"failed") in errors
    assert process.returncode in (1, -signal.SIGINT)


def test_tokenizer_and_codec_are_copied_from_the_url(corpus, tmp_path):
    (corpus / "codec" / "deep").mkdir(parents=True)
    (corpus / "codec" / "codec.json").write_text("{}")
    (corpus / "codec" / "deep" / "weights").write_bytes(b"\1\2")
    upload(corpus, "data")
    for number, url in enumerate((URL, f"file://{corpus}")):
        target = tmp_path / str(number)
        assert download_folder(f"{url}/codec", target)
        assert (target / "deep" / "weights").read_bytes() == b"\1\2"
        assert not download_folder(f"{url}/tokenizer", tmp_path / "tokenizer")


def test_a_folder_of_a_web_server_is_skipped_with_a_warning(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert not download_folder(f"{start_server()}/bucket/data/codec", tmp_path / "codec")
    assert "does not list folders" in caplog.text
