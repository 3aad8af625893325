"""Shards staged whole: checked, shared by the processes of a host, nothing half there."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from shaky import ShakyFileSystem as Store
from storage_toys import (
    SHARD,
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
    with pytest.raises(UserError, match=rf"shaky://data/train/{SHARD} is damaged: its crc32c is"):
        make_dataset(settings(storage="stage"))
    path.unlink()
    with pytest.raises(UserError, match=rf"shaky://data/train/{SHARD} is missing"):
        make_dataset(settings(storage="stage"))
    assert not list((tmp_path / "cache").rglob(SHARD))
    path.write_bytes(content)
    Store.asked.clear()
    make_dataset(settings(storage="stage"))
    assert "data/train/shard-00000.array_record" not in Store.asked  # staged before the error


def test_a_staged_file_that_changed_is_noticed_and_fetched_again(corpus, settings, tmp_path):
    expected = batches(settings(corpus, "direct"))
    make_dataset(settings(storage="stage"))
    (copy,) = (tmp_path / "cache").rglob(SHARD)
    content = copy.read_bytes()
    copy.write_bytes(content[:200] + b"\xff" + content[201:])
    os.utime(copy, ns=(0, 0))
    Store.asked.clear()
    assert_equal(batches(settings(storage="stage")), expected)
    assert [path for path in Store.asked if "array" in path] == [f"data/train/{SHARD}"]
    os.utime(copy, ns=(5, 5))  # another time, the same bytes: read here and kept
    Store.asked.clear()
    make_dataset(settings(storage="stage"))
    assert f"data/train/{SHARD}" not in Store.asked


def test_a_disk_without_room_is_one_error_before_anything_is_fetched(corpus, settings, monkeypatch):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB are to be staged, 0\.0 GB are free; make room"):
        make_dataset(settings(storage="stage"))
    assert set(Store.asked) == {"data/manifest.json"}


def test_a_disk_that_fills_up_meanwhile_is_one_error(corpus, settings, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging.os, "fsync", full)
    with pytest.raises(UserError, match=r"GB are free; make room, choose another data\.cache_dir"):
        make_dataset(settings(storage="stage"))


def test_processes_of_one_host_share_the_staging(corpus, settings, tmp_path):
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from shaky import ShakyFileSystem as Store\n"
        "Store.start(Path(sys.argv[2])); Store.seconds = 0.2\n"
        "from soda_jax.data.dataset import make_dataset\n"
        "made = make_dataset(json.loads(sys.argv[3]))\n"
        "print(json.dumps([made.batch(0, range(4)).tokens.tolist(), Store.asked]))"
    )
    config = json.dumps(settings(storage="stage", read_threads=1))
    arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(Store.root), config]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert results[0][0] == results[1][0]
    files = [asked for _, counts in results for asked in counts if "train/" in asked]
    assert sorted(files) == sorted(set(files)) and len(files) == 4


def test_a_killed_process_leaves_no_lock_and_nothing_half_there(corpus, settings, tmp_path):
    folder = tmp_path / "cache" / "shaky" / "data" / "train"
    folder.mkdir(parents=True)
    (folder / f".{SHARD}.partial").write_bytes(b"half")
    program = (
        "import fcntl, os, signal, sys; f = open(sys.argv[1], 'wb'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = folder / f".{SHARD}.lock"
    subprocess.run([sys.executable, "-c", program, str(lock)], check=False)
    with open(lock, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again
    assert_equal(batches(settings(storage="stage")), batches(settings(corpus, "direct")))
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*.partial"))


def test_staging_waits_for_the_process_that_is_at_a_file(corpus, settings, tmp_path):
    folder = tmp_path / "cache" / "shaky" / "data" / "train"
    folder.mkdir(parents=True)
    held = open(folder / f".{SHARD}.lock", "wb")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    release = threading.Timer(0.3, held.close)
    release.start()
    began = time.monotonic()
    make_dataset(settings(storage="stage"))
    assert time.monotonic() - began > 0.25
    release.join()
