"""launch/gpu_slurm.sh against stand-ins of sbatch, srun and scontrol."""

import shlex

import pytest

OPTIONS = ("--name=soda-1.7b", "--nodes=4", "--gpus_per_node=8", "--time=1-00:00:00")
OPTIONS += ("--soda=/shared/my env/bin/soda",)
AWKWARD = [
    "--config=my config.py",
    '--config.a="it\'s"',
    "--config.b=$HOME `x` \\ *",
    "",
    "--c=a\nb",
]
TRAIN = ["--", *AWKWARD, "--workdir=/shared/w"]


@pytest.fixture
def batch(cloud):
    """batch(*options): the batch script that sbatch was given."""

    def submit(*options):
        cloud.add("sbatch")
        cloud.answer("sbatch", stdout="17;cluster\n")
        done = cloud.run("gpu_slurm.sh", *OPTIONS, *options, *TRAIN)
        assert done.returncode == 0, done
        assert done.stderr == "gpu_slurm.sh: job 17; its log: soda-1.7b-17.log\n"
        *words, given = cloud.calls()[0]
        assert words == ["sbatch", "--parsable"]
        return given["stdin"]

    return submit


def directives(script):
    return [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_job_has_a_task_per_gpu_and_a_signal_before_its_time_limit(batch):
    script = batch("--partition=h100", "--account=me", "--cpus_per_gpu=12", "--save_seconds=600")
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert set(directives(script)) == {
        "--job-name=soda-1.7b", "--output=soda-1.7b-%j.log", "--open-mode=append", "--nodes=4",
        "--ntasks-per-node=8", "--gpus-per-node=8", "--time=1-00:00:00", "--requeue",
        "--signal=TERM@600", "--partition=h100", "--account=me", "--cpus-per-task=12",
    }  # fmt: skip
    # No command before the last directive: Slurm stops reading there.
    lines = script.splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])


@pytest.mark.parametrize(
    "status, ends, requeued",
    [(0, 0, False), (1, 1, False), (137, 137, False), (75, 0, True), (76, 0, True)],
)
def test_the_job_is_requeued_only_after_status_75_and_76(cloud, batch, status, ends, requeued):
    file = cloud.folder / "batch"
    file.write_text(batch())
    file.chmod(0o755)
    cloud.add("srun", "scontrol")
    cloud.answer("srun", code=status)
    if requeued:
        cloud.answer("scontrol")
    done = cloud.run(file, SLURM_JOB_ID="17")
    assert done.returncode == ends, done
    step, *rest = [
        [word for word in call if not isinstance(word, dict)] for call in cloud.calls()[1:]
    ]
    assert step[:3] == ["srun", "--kill-on-bad-exit=0", "--wait=120"]
    assert step[3:] == ["/shared/my env/bin/soda", "train", *TRAIN[1:]]
    assert rest == ([["scontrol", "requeue", "17"]] if requeued else [])


def test_a_job_that_is_cancelled_stays_cancelled(cloud, batch):
    # scancel sends SIGTERM to the batch shell, too; the step then ends with 75.
    file = cloud.folder / "batch"
    file.write_text(batch())
    file.chmod(0o755)
    cloud.add("scontrol")
    srun = cloud.path / "srun"
    srun.write_text("#!/bin/sh\nkill -TERM $PPID\nexit 75\n")
    srun.chmod(0o755)
    assert cloud.run(file, SLURM_JOB_ID="17").returncode == 75
    assert len(cloud.calls()) == 1


def test_a_job_that_loses_its_hosts_again_and_again_ends(cloud, batch):
    file = cloud.folder / "batch"
    file.write_text(batch())
    file.chmod(0o755)
    cloud.add("srun", "scontrol")
    cloud.answer("srun", code=76)
    assert cloud.run(file, SLURM_JOB_ID="17", SLURM_RESTART_COUNT="20").returncode == 76
    assert len(cloud.calls()) == 2  # sbatch and srun


def test_a_requeue_that_is_refused_ends_with_75(cloud, batch):
    file = cloud.folder / "batch"
    file.write_text(batch())
    file.chmod(0o755)
    cloud.add("srun", "scontrol")
    cloud.answer("srun", code=75)
    cloud.answer("scontrol", code=1)
    assert cloud.run(file, SLURM_JOB_ID="17").returncode == 75


def test_a_refused_job_is_one_line_after_the_message_of_sbatch(cloud):
    cloud.add("sbatch")
    cloud.answer("sbatch", stderr="sbatch: error: invalid partition\n", code=1)
    done = cloud.run("gpu_slurm.sh", *OPTIONS, *TRAIN)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [
        "sbatch: error: invalid partition",
        "gpu_slurm.sh: error: sbatch refused the job, see above; --dry_run prints it",
    ]


def test_dry_run_prints_script_and_command_and_calls_nothing(cloud, batch):
    cloud.add("sbatch")
    done = cloud.run("gpu_slurm.sh", *OPTIONS, "--dry_run", *TRAIN)
    assert done.returncode == 0 and cloud.calls() == []
    script, _, command = done.stdout.partition("# the above is the input of:\n")
    assert shlex.split(command) == ["sbatch", "--parsable"]
    assert script == batch()
