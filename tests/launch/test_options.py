"""What all launch scripts do alike: options, quoting, what is missing."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_toys import ROOT

SCRIPTS = ("local.sh", "tpu_pod.sh", "gpu_slurm.sh", "gke.sh")
SLURM = ("--name=a", "--nodes=1", "--gpus_per_node=8", "--time=1:00:00")
TPU = ("--name=a", "--zone=z", "--type=v5p-8")
GKE = ("--name=a", "--image=r/soda:1", "--tpu=v5p", "--topology=2x2x2")
TRAIN = ("--", "--config=c", "--workdir=w")
FULL = {"local.sh": ("--processes=2",), "tpu_pod.sh": TPU, "gpu_slurm.sh": SLURM, "gke.sh": GKE}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_option_and_needs_no_tool(script, cloud):
    done = cloud.run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"launch/{script} --" in done.stdout and "--dry_run" in done.stdout
    text = (ROOT / "launch" / script).read_text()
    call = text.partition("\nparse_options ")[2].partition('"$@"')[0]
    names = call.replace('"', " ").replace("\\", " ").split()
    assert len(names) > 3
    assert all(f"--{name}" in done.stdout for name in names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_fault_of_the_command_line_is_one_line(script, fails):
    full = FULL[script]
    assert "unknown option --colour; the options are --" in fails(
        script, *full, "--colour=red", *TRAIN
    )
    assert "unknown option --colour" in fails(script, *full, "--colour", *TRAIN)
    assert "unexpected argument 'a b'" in fails(script, *full, "a b", *TRAIN)
    assert "--dry_run takes no value" in fails(script, *full, "--dry_run=1", *TRAIN)
    assert "arguments of soda train after --" in fails(script, *full)
    first = full[0].partition("=")[0]
    assert f"{first}=… is missing" in fails(script, *full[1:], *TRAIN)
    assert f"{first} needs a value" in fails(script, *full[1:], first)


@pytest.mark.parametrize(
    "script, option",
    [
        ("local.sh", "--processes=two"),
        ("local.sh", "--processes=0"),
        ("local.sh", "--devices_per_process=-1"),
        ("tpu_pod.sh", "--poll_seconds=1.5"),
        ("gpu_slurm.sh", "--nodes=010"),
        ("gke.sh", "--slices="),
        ("gke.sh", "--max_restarts=many"),
    ],
)
def test_a_number_that_is_none_is_named(script, option, fails):
    assert f"{option}: give a whole number" in fails(script, *FULL[script], option, *TRAIN)


@pytest.mark.parametrize(
    "script, option, message",
    [
        ("tpu_pod.sh", "--type=v9-8", "give --runtime_version; only v4-N"),
        ("tpu_pod.sh", "--name=My_Pod", "lower-case letters"),
        ("gpu_slurm.sh", "--partition=a b", "--partition=a b: give letters"),
        ("gpu_slurm.sh", "--time=1\n#SBATCH --uid=0", "give letters"),
        ("gke.sh", "--gpu=nvidia-h100-80gb", "either --tpu=TYPE or --gpu=TYPE"),
        ("gke.sh", "--tpu=v9", "--tpu=v9 is unknown: v4, v5e, v5p, v6e"),
        ("gke.sh", "--topology=2x2", "is not a shape of a v5p slice"),
        ("gke.sh", "--topology=0x2x2", "is not a shape of a v5p slice"),
        ("gke.sh", "--topology=1x2x3", "not a multiple of --chips_per_node"),
        ("gke.sh", "--namespace=a: b", "lower-case letters"),
        ("gke.sh", "--bucket=b", "--bucket=b: give gs://"),
    ],
)
def test_a_value_that_cannot_be_is_named(script, option, message, fails):
    train = TRAIN[:2] if "bucket" in option else TRAIN
    arguments = (*FULL[script], option, *train)
    assert message in fails(script, *arguments)


@pytest.mark.parametrize("script", ("tpu_pod.sh", "gpu_slurm.sh", "gke.sh"))
def test_a_run_without_a_workdir_is_refused(script, fails):
    assert "no --workdir" in fails(script, *FULL[script], "--", "--config=c")
    assert "give the arguments of soda train" in fails(
        script, *FULL[script], "--", "python", "x.py"
    )


@pytest.mark.parametrize(
    "script, tool", [("gpu_slurm.sh", "sbatch"), ("gke.sh", "kubectl"), ("tpu_pod.sh", "gcloud")]
)
def test_a_missing_tool_is_named(script, tool, cloud, checkout):
    done = cloud.run(checkout / "launch" / script, *FULL[script], *TRAIN)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"{script}: error: {tool} is not on PATH: ")
    assert len(done.stderr.splitlines()) == 1


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=30))
def test_quoted_words_are_read_back_unchanged_by_any_shell(words):
    # A line of quoted words, once more quoted: as a command that ssh hands to a second shell.
    common = ROOT / "launch" / "_common.sh"
    script = f'source {shlex.quote(str(common))}; quote "$(quote printf "%s\\0" "$@")"'
    line = subprocess.run(
        ["bash", "-c", script, "test", *words], capture_output=True, check=True
    ).stdout.decode()
    for shell in ("sh", "bash"):
        read = subprocess.run(
            [shell, "-c", f"{shell} -c {line}"], capture_output=True, check=True
        ).stdout.decode()
        assert read == "".join(f"{word}\0" for word in words) or not words


def examples():
    """The commands of docs/launch.md and of the help of each script, as words."""
    text = (ROOT / "docs" / "launch.md").read_text()
    text = "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.M | re.S))
    for script in SCRIPTS:
        text += "\n" + (ROOT / "launch" / script).read_text().replace("\n#", "\n")
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r" *launch/[a-z_]+\.sh --", line)]


def test_the_examples_of_every_script_run_dry(cloud):
    assert {line.split()[0].removeprefix("launch/") for line in examples()} == set(SCRIPTS)
    for line in examples():
        script, *words = shlex.split(line.replace(" [", " ").replace("] ", " "))
        done = cloud.run(script.removeprefix("launch/"), "--dry_run", *words)
        assert done.returncode == 0 and done.stdout, (line, done.stderr)


def test_the_scripts_can_be_executed_and_their_parts_say_so():
    for script in SCRIPTS:
        assert (ROOT / "launch" / script).stat().st_mode & 0o111
    assert Path(ROOT / "launch" / "_tpu_host.sh").stat().st_mode & 0o111
