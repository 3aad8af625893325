"""launch/gke.sh against a stand-in of kubectl: the manifest, and what follows from each answer."""

import re
import shlex

import pytest
import yaml
from launch_toys import ROOT

BASE = ("--name=soda-4b", "--image=registry.example/soda:1", "--poll_seconds=0")
TPU = (*BASE, "--tpu=v5p", "--topology=4x4x8")
GPU = (*BASE, "--gpu=nvidia-h100-80gb", "--nodes=4")
AWKWARD = [
    '--config.a="it\'s"',
    "--config.b=$HOME $(HOME) $$(X) $$$ \\ *",
    "",
    "--c=a\n\tb",
    "ü: [1]",
]
TRAIN = ["--", "--config=my config.py", *AWKWARD, "--workdir=/shared/w"]
GET = ["kubectl", "get", "jobset", "soda-4b", "--ignore-not-found"]
GET += ["--output=jsonpath={.status.terminalState}"]


def manifest(cloud, *options):
    done = cloud.run("gke.sh", *options, "--dry_run", *TRAIN)
    assert done.returncode == 0, done
    assert cloud.calls() == []
    return yaml.safe_load(done.stdout.partition("# the above")[0])


def pod_of(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def expanded(word, variables):
    """A word of command or args as Kubernetes hands it on: $(NAME) replaced, $$ read as $."""
    pattern = r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)"
    return re.sub(pattern, lambda m: variables.get(m[1], m[0]) if m[1] else "$", word)


@pytest.mark.parametrize(
    "options, hosts, chips, accelerator",
    [
        (("--tpu=v5p", "--topology=4x4x8"), 32, 4, "tpu-v5p-slice"),
        (("--tpu=v4", "--topology=2x2x1"), 1, 4, "tpu-v4-podslice"),
        (("--tpu=v5e", "--topology=4x8"), 8, 4, "tpu-v5-lite-podslice"),
        (("--tpu=v6e", "--topology=1x1"), 1, 1, "tpu-v6e-slice"),
        (("--tpu=v6e", "--topology=2x4", "--chips_per_node=8"), 1, 8, "tpu-v6e-slice"),
    ],
)
def test_a_slice_has_a_pod_for_each_host(cloud, options, hosts, chips, accelerator):
    found = manifest(cloud, *BASE, *options, "--slices=2")
    [workers] = found["spec"]["replicatedJobs"]
    assert workers["replicas"] == 2
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"] == hosts
    pod = pod_of(found)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": options[1].partition("=")[2],
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}
    assert f"--processes={2 * hosts} " in pod["containers"][0]["command"][2]
    assert len(found["metadata"]["annotations"]) == 1


def test_gpu_nodes_are_chosen_by_label(cloud):
    found = manifest(cloud, *GPU, "--spot", "--service_account=trainer", "--max_restarts=3")
    pod = pod_of(found)
    label = "cloud.google.com/gke-spot"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        label: "true",
    }
    assert [t["key"] for t in pod["tolerations"]] == [label]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert "annotations" not in found["metadata"]


def test_a_preemption_starts_all_again_and_another_failure_does_not(cloud):
    spec = manifest(cloud, *TPU)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    on_exit, on_disruption = job["podFailurePolicy"]["rules"]
    assert on_exit["onExitCodes"]["values"] == [75, 76] and on_exit["action"] == "FailJob"
    assert (
        on_exit["onExitCodes"]["containerName"] == pod_of({"spec": spec})["containers"][0]["name"]
    )
    assert on_disruption["onPodConditions"][0] == {"type": "DisruptionTarget", "status": "True"}
    # Kubernetes takes a pod failure policy only with this one.
    assert pod_of({"spec": spec})["restartPolicy"] == "Never"
    policy = spec["failurePolicy"]
    assert policy["maxRestarts"] == 0
    [rule] = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_each_pod_starts_soda_with_its_number_and_the_arguments_as_given(cloud):
    found = manifest(cloud, *TPU, "--slices=3")
    assert found["spec"]["network"] == {"enableDNSHostnames": True}
    container = pod_of(found)["containers"][0]
    assert [e["name"] for e in container["env"]] == ["JOB_INDEX"]
    variables = {"JOB_INDEX": "2", "JOB_COMPLETION_INDEX": "5", "HOME": "/root", "X": "x"}
    words = [expanded(word, variables) for word in container["command"] + container["args"]]
    cloud.add("soda")
    cloud.answer("soda")
    file = cloud.folder / "entry"
    file.write_text("#!/usr/bin/env bash\n" + shlex.join(words).replace("/bin/sh", "sh", 1) + "\n")
    file.chmod(0o755)
    assert cloud.run(file, **variables).returncode == 0
    start = ["--coordinator=soda-4b-workers-0-0.soda-4b:8482", "--processes=96", "--process=69"]
    assert cloud.calls() == [["soda", "train", *TRAIN[1:], *start]]


def test_applies_follows_and_ends_with_the_state_of_the_jobset(cloud):
    cloud.add("kubectl")
    cloud.answer("get")
    cloud.answer("apply")
    cloud.answer("logs", code=1, stderr="error: no pods yet\n")
    cloud.answer("get")
    cloud.answer("logs", stdout="step 1\n")
    cloud.answer("get", stdout="Completed")
    done = cloud.run("gke.sh", *TPU, "--namespace=ml", *TRAIN)
    assert done.returncode == 0 and done.stdout == "step 1\n"
    calls = cloud.calls()
    assert [call[1] for call in calls] == ["get", "apply", "logs", "get", "logs", "get"]
    assert calls[0] == [*GET, "--namespace=ml"]
    assert calls[1][:-1] == ["kubectl", "apply", "--filename=-", "--namespace=ml"]
    assert yaml.safe_load(calls[1][-1]["stdin"]) == manifest_of(cloud)
    assert calls[2] == calls[4] == [
        "kubectl", "logs", "--selector=jobset.sigs.k8s.io/jobset-name=soda-4b", "--follow",
        "--prefix", "--ignore-errors", "--max-log-requests=32", "--tail=-1", "--namespace=ml",
    ]  # fmt: skip


def manifest_of(cloud):
    text = cloud.run("gke.sh", *TPU, "--dry_run", *TRAIN).stdout
    return yaml.safe_load(text.partition("# the above")[0])


def test_a_failed_jobset_is_an_error(cloud):
    cloud.add("kubectl")
    for words, reply in (("get", ""), ("apply", ""), ("logs", ""), ("get", "Failed")):
        cloud.answer(words, stdout=reply)
    done = cloud.run("gke.sh", *TPU, *TRAIN)
    assert done.returncode == 1
    assert "gke.sh: error: JobSet soda-4b has failed" in done.stderr


def test_a_jobset_that_has_ended_is_not_taken_for_a_new_one(cloud):
    cloud.add("kubectl")
    cloud.answer("get", stdout="Completed")
    done = cloud.run("gke.sh", *TPU, *TRAIN)
    assert done.returncode == 2 and len(cloud.calls()) == 1
    assert "has ended (Completed): remove it with kubectl delete jobset soda-4b" in done.stderr


def test_a_kubectl_that_fails_is_an_error(cloud):
    cloud.add("kubectl")
    cloud.answer("get", stderr="no cluster\n", code=1)
    done = cloud.run("gke.sh", *TPU, *TRAIN)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "no cluster",
        "gke.sh: error: kubectl does not report the state of JobSet soda-4b, see above",
    ]
    cloud.answer("get")
    cloud.answer("apply", stderr="invalid\n", code=1)
    done = cloud.run("gke.sh", *TPU, *TRAIN)
    assert done.returncode == 2 and "error: kubectl refused the JobSet" in done.stderr


def test_a_control_character_is_refused(fails):
    assert "control character" in fails("gke.sh", *TPU, *TRAIN, "a\x07b")


def test_the_manifest_names_no_file_of_this_checkout(cloud):
    assert str(ROOT) not in str(manifest(cloud, *TPU))
