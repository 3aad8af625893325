"""`soda doctor`: one line per finding, and a failure if a run would fail."""

import argparse
from pathlib import Path

import jax
import pytest
from toys import run_two, xla_flags

from soda_jax.commands import doctor as command
from soda_jax.doctor import checks
from soda_jax.doctor.findings import FAILURE, OK, WARNING, Finding, run_check
from soda_jax.doctor.run import examine
from soda_jax.errors import UserError
from soda_jax.parallel import hosts
from soda_jax.parallel.mesh import make_mesh


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(checks, "READ_SECONDS", 0.2)
    monkeypatch.setattr(checks, "REDUCED_BYTES", 1 << 16)


def test_a_working_machine_is_ready_and_no_files_are_left(config, tmp_path, capsys):
    settings = config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    assert examine(settings, tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    checked = {line.split()[1] for line in lines[:-1]}
    expected = [
        "versions",
        "clocks",
        "devices",
        "arithmetic",
        "mesh",
        "all-reduce",
        "data",
        "disk",
        "checkpoint",
    ]
    assert checked == set(expected) and all(line.startswith("ok ") for line in lines[:-1])
    assert sum("all-reduce" in line for line in lines) == 3  # one per axis
    assert lines[-1] == "ready: 0 failures, 0 warnings"
    assert not list(tmp_path.rglob("doctor"))


def test_a_run_that_would_fail_is_reported_and_the_other_checks_run(config, tmp_path, capsys):
    settings = config(mesh__data=3)
    assert examine(settings, tmp_path) == 1
    out = capsys.readouterr().out
    assert "FAILS    mesh" in out and "does not multiply to 8 devices" in out
    assert "ok       checkpoint" in out and out.endswith(
        "the run would fail: 1 failures, 0 warnings\n"
    )


def test_missing_data_and_an_unwritable_folder_are_findings(config, tmp_path, capsys):
    settings = config()
    settings.data.sources.speech.path = str(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert examine(settings, tmp_path / "file") == 1
    out = capsys.readouterr().out
    assert "nowhere" in out and "FAILS    checkpoint" in out
    assert "Traceback" not in out


def test_too_little_disk_is_a_failure(tmp_path):
    ((level, message),) = checks.disk(tmp_path / "not/yet", 1e18, 3)
    assert level == FAILURE and "4,000,000,000.0" in message
    ((level, _),) = checks.disk(tmp_path, 1.0, 3)
    assert level == OK


def test_the_checkpoint_check_uses_the_directory_of_the_config(config, tmp_path, capsys):
    settings = config(checkpoint__directory=str(tmp_path / "elsewhere"))
    assert examine(settings, tmp_path / "run") == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / "elsewhere").is_dir() and not (tmp_path / "run").exists()


def test_a_workdir_at_a_url_is_refused_as_the_trainer_does():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args, args.unknown = parser.parse_known_args(["--workdir=gs://nowhere/x"])
    with pytest.raises(UserError, match="local folder"):
        command.run(args)


@pytest.mark.parametrize(("spread", "level"), [(0.1, OK), (20.0, WARNING), (400.0, FAILURE)])
def test_clocks_that_differ_are_reported(spread, level):
    (found,) = checks.judge_clocks([1000.0, None, 1000.0 + spread], 0)
    assert found.level == level and ("NTP" in found.message) == (level != OK)


def test_a_host_with_another_version_is_a_failure():
    mine = checks.versions()
    found = {
        one.level: one.message for one in checks.judge_versions([{**mine, "jax": "0.1.0"}, mine], 1)
    }
    assert "but 0.1.0 in process 0" in found[FAILURE]
    assert [one.level for one in checks.judge_versions([mine, mine], 1)] == [OK]


def test_hosts_with_other_devices_and_devices_in_use_are_reported():
    mine = {"count": 4, "kind": "TPU v5", "limit": 1e11, "used": [["TPU_2", 9e10]]}
    found = list(checks.judge_devices([{**mine, "count": 8}, mine], 1))
    assert [one.level for one in found] == [OK, FAILURE, WARNING]
    assert "12 in total" in found[0].message
    assert "TPU_2: 90.0 GB already in use" in found[2].message


def test_a_slow_device_is_named():
    quick = {"size": 4096, "platform": "tpu", "rates": {"TPU_0": 4e14, "TPU_1": 4e14}}
    slow = {**quick, "rates": {"TPU_2": 4e14, "TPU_3": 1e14}}
    assert [one.level for one in checks.judge_arithmetic([quick, slow], 0)] == [OK]
    assert "TPU_3 reaches 25%" in list(checks.judge_arithmetic([quick, slow], 1))[1].message


def test_a_sum_that_is_wrong_is_a_failure(monkeypatch):
    monkeypatch.setattr(checks.jax.lax, "psum", lambda x, axis: x)
    found = checks.all_reduce(make_mesh({"data": 8}), 1 << 12)
    assert [level for level, _ in found] == [FAILURE]


def test_equal_findings_of_all_hosts_are_merged(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rows = [
        [[["ok", "much"], ["ok", "quick"]], ""],
        [[["ok", "much"], ["ok", "slow"]], ""],
    ]
    monkeypatch.setattr(hosts, "gather_json", lambda value, name, timeout: rows)
    found = run_check("disk", lambda: [])
    assert [(one.message, one.process) for one in found] == [
        ("much", -1),
        ("quick", 0),
        ("slow", 1),
    ]


def test_an_exception_in_a_check_is_a_finding():
    def check():
        raise ZeroDivisionError("the store is gone\nand more")

    assert run_check("data", check) == [Finding(FAILURE, "data", "the store is gone")]


PROGRAM = """
import sys
port, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
from pathlib import Path
from soda_jax.commands import doctor as command
from soda_jax.doctor import checks
from soda_jax.doctor.run import examine
checks.REDUCED_BYTES = 1 << 16
checks.checkpoint.__defaults__ = (1 << 16,)
if number == 1:
    def arithmetic():
        raise OSError("a card fell off")
    def layout(mesh):
        raise OSError("no such disk")
    checks.arithmetic, checks.layout = arithmetic, layout
print("status", examine(None, Path(folder)))
"""


def test_two_processes_print_one_list_and_name_the_process_that_fails(tmp_path):
    flags = {"XLA_FLAGS": xla_flags(2)}
    codes, output = run_two(PROGRAM, str(tmp_path), environment=flags, timeout=120)
    assert codes == [0, 0], output
    assert all("status 1" in text for text in output)
    assert "a card fell off (process 1)" in output[0] and "no such disk (process 1)" in output[0]
    assert "all-reduce   data=4" in output[0] and "2 clocks within" in output[0]
    assert "ok       checkpoint" in output[0] and "checkpoint" not in output[1]
    assert not list(Path(tmp_path).rglob("doctor")), output
