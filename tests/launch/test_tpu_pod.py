"""launch/tpu_pod.sh against a stand-in of gcloud: the calls, and what follows from each answer."""

import re
import shlex
from pathlib import Path

import pytest
from launch_toys import ROOT

from soda_jax.checkpoints.folder import local_workdir, of_run
from soda_jax.commands._config import load_config
from soda_jax.files import is_url

OPTIONS = ("--name=pod", "--zone=us-east5-a", "--type=v5p-256", "--project=p", "--poll_seconds=0")
WHERE = ["--zone=us-east5-a", "--project=p", "--quiet"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
POD = ["gcloud", "compute", "tpus", "tpu-vm"]
DESCRIBE = [*QUEUE, "describe", "pod", "--format=value(state.state)", *WHERE]
DESCRIBE_POD = [*POD, "describe", "pod", "--format=value(state)", *WHERE]
DELETE = [*QUEUE, "delete", "pod", "--force", *WHERE]
CREATE = [*QUEUE, "create", "pod", "--node-id=pod", "--accelerator-type=v5p-256"]
CREATE += ["--runtime-version=v2-alpha-tpuv5", "--spot", *WHERE]
AWKWARD = [
    "--config=my config.py",
    '--config.a="it\'s"',
    "--config.b=$HOME `x` \\ *",
    "",
    "--c=a\nb",
]
TRAIN = ["--", *AWKWARD, "--workdir=/shared/w"]
ABSENT = {"stderr": "ERROR: (gcloud...) NOT_FOUND: no such thing\n", "code": 1}


@pytest.fixture
def pod(cloud, checkout):
    """pod(*options): runs the checkout's tpu_pod.sh with gcloud as a stand-in."""
    cloud.add("gcloud")
    script = checkout / "launch" / "tpu_pod.sh"
    return lambda *options: cloud.run(script, *OPTIONS, "--spot", *options, *TRAIN)


def say_states(cloud, *states):
    """Answers for as many questions after the pod; a state after "ACTIVE/" is that of the pod itself."""
    for state in states:
        queue, _, machine = state.partition("/")
        reply = ABSENT if queue == "NONE" else {"stdout": queue + "\n"}
        cloud.answer("queued-resources", "describe", **reply)
        if machine:
            cloud.answer("tpu-vm", "describe", stdout=machine + "\n")


READY = "ACTIVE/READY"


def say_statuses(cloud, *statuses):
    """Answers for the commands on the hosts, in order."""
    for status in statuses:
        cloud.answer("ssh", code=status)


def verbs(cloud):
    """The calls in short: what is done to the queued resource, and the commands on the hosts."""
    short = []
    for call in cloud.calls():
        assert call[:3] == ["gcloud", "compute", "tpus"] and call[-3:] == WHERE
        if call[4] == "ssh":
            line = next(word for word in call if word.startswith("--command="))
            kinds = {"install": "install", "train": "train", "flock": "look", "follow": "follow"}
            short.append(next(kind for word, kind in kinds.items() if word in line.split()))
        elif call[4] != "describe":
            short.append(call[4])
    return short


def attempts(cloud):
    """The name of each attempt that was started."""
    lines = [word for call in cloud.calls() for word in call if "_tpu_host.sh train" in word]
    return [line.split(" train ")[1].split()[0] for line in lines]


def test_a_new_pod_is_requested_filled_and_trains(cloud, pod, checkout):
    say_states(cloud, "NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE/CREATING", READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, 0)
    done = pod()
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    archive = calls[-3][5]
    source = archive.rpartition("/")[2].removesuffix(".tar.gz")
    assert calls[:2] == [DESCRIBE, CREATE]
    assert calls[2:8] == [DESCRIBE, DESCRIBE, DESCRIBE, DESCRIBE_POD, DESCRIBE, DESCRIBE_POD]
    assert calls[8] == [*POD, "scp", archive, f"pod:{source}.tar.gz", "--worker=all", *WHERE]
    assert calls[9][:7] == calls[10][:7] == [*POD, "ssh", "pod", "--worker=all"]
    command = calls[10][7].removeprefix("--command=")
    [attempt] = attempts(cloud)
    words = ["bash", f"{source}/launch/_tpu_host.sh", "train", attempt, *TRAIN[1:]]
    assert shlex.split(command) == words
    assert len(calls) == 11
    for state in ("NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "READY"):
        assert f"tpu_pod.sh: pod is {state}\n" in done.stderr
    assert "pod is charged, and an unfinished run on it continues, until: " in done.stderr


def test_what_reaches_soda_train_is_what_was_given(cloud, pod, checkout):
    # The answer to ssh is the real script of the hosts, run by another shell in a home of its own.
    home = cloud.folder
    say_states(cloud, "NONE", READY)
    cloud.answer("create")
    cloud.answer("scp")
    cloud.answer("ssh")
    cloud.answer("ssh", shell=str(home))
    commands = cloud.run(checkout / "launch/tpu_pod.sh", *OPTIONS, "--dry_run", *TRAIN).stdout
    source = home / re.search("soda-[0-9a-f]{12}", commands)[0]
    (source / ".venv/bin").mkdir(parents=True)
    (source / "launch").symlink_to(checkout / "launch")
    soda = source / ".venv/bin/soda"
    soda.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >{shlex.quote(str(home / 'got'))}\n")
    soda.chmod(0o755)
    done = pod()
    assert done.returncode == 0, done
    assert (home / "got").read_text() == "".join(f"{word}\0" for word in ["train", *TRAIN[1:]])


def test_a_pod_that_is_there_is_used_and_what_runs_on_it_followed(cloud, pod):
    say_states(cloud, READY)
    say_statuses(cloud, 0, 0)
    assert pod().returncode == 0
    assert verbs(cloud) == ["look", "follow"]


def test_an_idle_pod_is_used(cloud, pod):
    say_states(cloud, READY)
    cloud.answer("scp")
    say_statuses(cloud, 1, 0, 0)
    assert pod().returncode == 0
    assert verbs(cloud) == ["look", "scp", "install", "train"]


@pytest.mark.parametrize("again", [75, 76])
def test_exit_status_75_or_76_starts_the_next_attempt_on_the_same_pod(cloud, pod, again):
    say_states(cloud, "NONE", READY, READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, again, 0)
    done = pod()
    assert done.returncode == 0
    assert verbs(cloud) == ["create", "scp", "install", "train", "train"]
    assert len(set(attempts(cloud))) == 2
    assert ": restarting" in done.stderr


@pytest.mark.parametrize("status", [1, 2, 134])
def test_another_exit_status_ends_with_it(cloud, pod, status):
    say_states(cloud, "NONE", READY, READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, status)
    done = pod()
    assert done.returncode == status
    assert f"tpu_pod.sh: error: the run on pod ended with status {status}, see above" in done.stderr


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED", "ACTIVE/PREEMPTED", "ACTIVE/TERMINATED"])
@pytest.mark.parametrize("status", [75, 255])
def test_a_preempted_pod_is_deleted_requested_again_and_filled(cloud, pod, state, status):
    # Seen after the command has ended, and again before it is deleted.
    say_states(cloud, "NONE", READY, state, state, "NONE", READY)
    cloud.answer("create")
    cloud.answer("create")
    cloud.answer("delete")
    cloud.answer("scp")
    cloud.answer("scp")
    say_statuses(cloud, 0, status, 0, 0)
    done = pod()
    assert done.returncode == 0, done.stderr
    fill = ["create", "scp", "install", "train"]
    assert verbs(cloud) == [*fill, "delete", *fill]
    assert DELETE in cloud.calls()
    assert f"pod is {state.rpartition('/')[2]}: continuing on a new pod" in done.stderr


def test_a_pod_preempted_while_it_is_filled_is_requested_again(cloud, pod):
    say_states(cloud, "NONE", READY, "SUSPENDING", "SUSPENDING", "SUSPENDED", "NONE", READY)
    cloud.answer("create")
    cloud.answer("create")
    cloud.answer("delete")
    cloud.answer("scp", code=1)
    cloud.answer("scp")
    say_statuses(cloud, 0, 0)
    assert pod().returncode == 0
    assert verbs(cloud) == ["create", "scp", "delete", "create", "scp", "install", "train"]


def test_a_lost_connection_does_not_start_the_run_anew(cloud, pod):
    say_states(cloud, "NONE", READY, READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, 255, 0)
    assert pod().returncode == 0
    assert len(attempts(cloud)) == 2 and len(set(attempts(cloud))) == 1


def test_a_connection_that_stays_lost_ends_in_an_error(cloud, pod):
    say_states(cloud, "NONE", *[READY] * 7)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, *[255] * 6)
    assert pod().returncode == 255


def test_a_request_that_is_refused_ends_with_the_command_named(cloud, pod):
    say_states(cloud, "NONE")
    cloud.answer("create", stderr="ERROR: quota\n", code=1)
    done = pod()
    assert done.returncode == 2
    gcloud, state, line = done.stderr.splitlines()[-1], *done.stderr.splitlines()[:2]
    assert line == "ERROR: quota" and state == "tpu_pod.sh: pod is NONE"
    assert gcloud.startswith("tpu_pod.sh: error: this command failed with status 1: gcloud compute")
    assert verbs(cloud) == ["create"]


def test_a_request_that_fails_three_times_is_given_up(cloud, pod):
    say_states(cloud, "FAILED", "NONE", "FAILED", "NONE", "FAILED")
    for _ in range(2):
        cloud.answer("create")
        cloud.answer("delete")
    done = pod()
    assert done.returncode == 2
    assert "error: three requests for pod have failed; see gcloud compute" in done.stderr


def test_a_gcloud_that_cannot_answer_is_not_taken_for_an_absent_pod(cloud, pod):
    cloud.answer("describe", stderr="Traceback\nERROR: login first\n", code=1)
    done = pod()
    assert done.returncode == 2 and verbs(cloud) == []
    assert done.stderr == (
        "tpu_pod.sh: error: gcloud does not report the state of pod: ERROR: login first\n"
    )


def test_a_gcloud_that_fails_for_a_while_does_not_end_a_run(cloud, pod):
    say_states(cloud, "NONE", READY)
    for _ in range(9):
        cloud.answer("queued-resources", "describe", stderr="ERROR: no network\n", code=1)
    say_states(cloud, READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, 255, 0)
    assert pod().returncode == 0
    assert len(set(attempts(cloud))) == 1


@pytest.mark.parametrize("states", [["READY"] * 6, []])
def test_a_pod_on_which_the_run_may_go_on_is_not_deleted(cloud, pod, states):
    # The connection stays lost, or gcloud cannot tell the state any more.
    say_states(cloud, "NONE", READY, *["ACTIVE/" + state for state in states])
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 0, *[255] * (len(states) or 1))
    cloud.answer("describe", always=True, stderr="ERROR: no network\n", code=1)
    done = pod("--delete_when_done")
    assert done.returncode == (255 if states else 2)
    assert "delete" not in verbs(cloud) and "an unfinished run on it continues" in done.stderr


def test_an_installation_that_fails_on_a_sound_pod_is_an_error(cloud, pod):
    say_states(cloud, "NONE", READY, READY)
    cloud.answer("create")
    cloud.answer("scp")
    say_statuses(cloud, 1)
    done = pod()
    assert done.returncode == 2 and "soda could not be installed on pod" in done.stderr


def test_delete_when_done_deletes_after_success_and_failure(cloud, pod):
    for status in (0, 1):
        say_states(cloud, "NONE", READY, *([READY] if status else []))
        cloud.answer("create")
        cloud.answer("scp")
        cloud.answer("delete")
        say_statuses(cloud, 0, status)
        assert pod("--delete_when_done").returncode == status
        assert cloud.calls()[-1] == DELETE


def test_dry_run_prints_every_command_and_calls_nothing(cloud, pod):
    done = pod("--dry_run")
    assert done.returncode == 0 and cloud.calls() == []
    lines = done.stdout.splitlines()
    # The line break in an argument is printed as it is, inside its quotes.
    text = "\n".join(line for line in lines if not line.startswith("# "))
    words = shlex.split(text.replace("gcloud compute", "; gcloud compute"))
    for call in (DESCRIBE, CREATE, DESCRIBE_POD, DELETE):
        assert " ".join(call) in " ".join(words)
    [command] = [word for word in words if "_tpu_host.sh train" in word]
    assert shlex.split(command.removeprefix("--command="))[4:] == TRAIN[1:]


def test_dry_run_can_be_pasted(cloud, pod):
    done = pod("--dry_run")
    cloud.answer("gcloud", always=True)
    script = cloud.folder / "pasted.sh"
    script.write_text("#!/usr/bin/env bash\n" + done.stdout)
    script.chmod(0o755)
    assert cloud.run(script).returncode == 0
    calls = cloud.calls()
    assert [call[4] for call in calls] == [
        "describe", "create", "describe", "scp", "ssh", "ssh", "delete",
    ]  # fmt: skip
    assert calls[1] == CREATE and calls[-1] == DELETE
    assert shlex.split(calls[5][7].removeprefix("--command="))[4:] == TRAIN[1:]


def test_changes_that_are_not_committed_are_refused_unless_allowed(cloud, pod, checkout):
    (checkout / "my_config.py").touch()
    done = pod()
    assert done.returncode == 2 and cloud.calls() == []
    assert "error: my_config.py differs from commit" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    say_states(cloud, READY)
    say_statuses(cloud, 0, 0)
    done = pod("--allow_uncommitted")
    assert done.returncode == 0 and "warning: my_config.py differs from commit" in done.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        (("--reserved",), ["--reserved"]),
        (("--runtime_version=v2-alpha-x",), ["--runtime-version=v2-alpha-x"]),
        (("--type=v5litepod-16",), ["--runtime-version=v2-alpha-tpuv5-lite"]),
        (("--type=v6e-8",), ["--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"]),
        (("--type=v4-8",), ["--runtime-version=tpu-ubuntu2204-base"]),
    ],
)
def test_options_reach_the_request(cloud, checkout, options, words):
    script = checkout / "launch" / "tpu_pod.sh"
    done = cloud.run(script, *OPTIONS, *options, "--dry_run", *TRAIN)
    create = shlex.split(done.stdout.splitlines()[1])
    assert create[4] == "create" and set(words) <= set(create) and "--spot" not in create


def test_checkpoints_are_stored_in_the_bucket_unless_another_folder_is_set(cloud, checkout):
    script = checkout / "launch" / "tpu_pod.sh"
    options = (*OPTIONS, "--bucket=gs://b/runs/", "--dry_run", "--")
    out = cloud.run(script, *options, "--config=c").stdout
    assert (
        "--workdir=/var/tmp/soda/pod --config.checkpoint.directory=gs://b/runs/pod/checkpoints"
        in out
    )
    own = cloud.run(script, *options, "--config=c", "--workdir=w").stdout
    assert "/var/tmp" not in own and "gs://b/runs/pod/checkpoints" in own
    kept = cloud.run(script, *options, "--config=c", "--config.checkpoint.directory=gs://c").stdout
    assert "gs://b" not in kept.replace("--bucket=gs://b/runs/", "")


@pytest.mark.parametrize("words", [["--workdir=gs://c/w"], ["--workdir", "gs://c/w"]])
def test_a_workdir_that_the_trainer_refuses_is_refused_before_a_pod_is_paid_for(fails, words):
    assert "give --bucket=gs://" in fails("tpu_pod.sh", *OPTIONS, "--", "--config=c", *words)


def test_the_arguments_made_for_a_bucket_are_taken_by_the_trainer(cloud, checkout):
    script = checkout / "launch" / "tpu_pod.sh"
    words = ("--bucket=gs://b", "--dry_run", "--", "--config=demo")
    out = cloud.run(script, *OPTIONS, *words).stdout
    made = re.findall(r"--workdir=\S+|--config\.checkpoint\.directory=[^\s']+", out)
    workdir, directory = made[0].partition("=")[2], made[1]
    assert local_workdir(workdir) == Path(workdir)
    config = load_config("demo", [directory])
    assert is_url(of_run(Path(workdir), config.checkpoint.directory))


def test_spot_and_reserved_exclude_each_other(fails):
    assert "exclude" in fails("tpu_pod.sh", *OPTIONS, "--spot", "--reserved", *TRAIN)


def test_a_folder_that_is_no_checkout_is_refused(cloud, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "launch").symlink_to(ROOT / "launch")
    cloud.add("gcloud")
    done = cloud.run(tmp_path / "copy" / "launch" / "tpu_pod.sh", *OPTIONS, *TRAIN)
    assert done.returncode == 2 and "is not a git checkout" in done.stderr
