"""Staged copies are complete, have the right checksum, and are shared by the processes of a host."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest
from gcs import FAULTS, upload
from storage_toys import (
    SHARD,
    URL,
    assert_equal,
    batches,
)

from soda_jax.data.dataset import make_dataset
from soda_jax.data.storage import staging
from soda_jax.errors import UserError


def test_a_damaged_or_missing_file_is_not_staged(corpus, settings, tmp_path):
    path = corpus / "train" / SHARD
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    upload(corpus, "data")
    with pytest.raises(UserError, match=rf"{URL}/train/{SHARD} is damaged: its crc32c is"):
        make_dataset(settings(storage="stage"))
    path.unlink()
    upload(corpus, "data")
    with pytest.raises(UserError, match=rf"{URL}/train/{SHARD} is missing"):
        make_dataset(settings(storage="stage"))
    assert not list((tmp_path / "cache").rglob(SHARD))
    path.write_bytes(content)
    upload(corpus, "data")
    FAULTS.asked.clear()
    make_dataset(settings(storage="stage"))
    assert "data/train/shard-00000.array_record" not in FAULTS.asked  # staged before the error


def test_a_staged_file_that_changed_is_downloaded_again(corpus, settings, tmp_path):
    expected = batches(settings(corpus, "direct"))
    make_dataset(settings(storage="stage"))
    (copy,) = (tmp_path / "cache").rglob(SHARD)
    content = copy.read_bytes()
    copy.write_bytes(content[:200] + b"\xff" + content[201:])
    os.utime(copy, ns=(0, 0))
    FAULTS.asked.clear()
    assert_equal(batches(settings(storage="stage")), expected)
    assert [path for path in FAULTS.asked if "array" in path] == [f"data/train/{SHARD}"]
    os.utime(copy, ns=(5, 5))  # another time, the same bytes: only the local copy is read
    FAULTS.asked.clear()
    make_dataset(settings(storage="stage"))
    assert f"data/train/{SHARD}" not in FAULTS.asked


def test_a_disk_without_room_is_an_error_before_any_download(corpus, settings, monkeypatch):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match=r"staging needs 0\.0 GB and 0\.0 GB are free; delete files"
    ):
        make_dataset(settings(storage="stage"))
    assert set(FAULTS.asked) == {"data/manifest.json"}


def test_a_disk_that_fills_up_during_a_download_is_an_error(corpus, settings, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging.os, "fsync", full)
    with pytest.raises(
        UserError, match=r"GB are free; delete files, choose another data\.cache_dir"
    ):
        make_dataset(settings(storage="stage"))


def test_processes_of_one_host_share_the_staging(corpus, settings, tmp_path):
    program = (
        "import sys, json\n"
        "from soda_jax.data.dataset import make_dataset\n"
        "made = make_dataset(json.loads(sys.argv[1]))\n"
        "print(json.dumps(made.batch(0, range(4)).tokens.tolist()))"
    )
    FAULTS.seconds = 0.2
    config = json.dumps(settings(storage="stage", read_concurrency=1))
    arguments = [sys.executable, "-c", program, config]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert results[0] == results[1]
    files = {name: count for name, count in FAULTS.asked.items() if "train/" in name}
    assert set(files.values()) == {1} and len(files) == 4


def test_a_killed_process_leaves_no_lock_and_no_partial_file(corpus, settings, tmp_path):
    folder = tmp_path / "cache" / "gs" / "bucket" / "data" / "train"
    folder.mkdir(parents=True)
    (folder / f".{SHARD}.partial").write_bytes(b"half")
    program = (
        "import fcntl, os, signal, sys; f = open(sys.argv[1], 'wb'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = folder / f".{SHARD}.lock"
    subprocess.run([sys.executable, "-c", program, str(lock)], check=False)
    with open(lock, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not locked
    assert_equal(batches(settings(storage="stage")), batches(settings(corpus, "direct")))
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*.partial"))


def test_staging_waits_for_the_process_that_has_locked_a_file(corpus, settings, tmp_path):
    folder = tmp_path / "cache" / "gs" / "bucket" / "data" / "train"
    folder.mkdir(parents=True)
    held = open(folder / f".{SHARD}.lock", "wb")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    release = threading.Timer(0.3, held.close)
    release.start()
    began = time.monotonic()
    make_dataset(settings(storage="stage"))
    assert time.monotonic() - began > 0.25
    release.join()
