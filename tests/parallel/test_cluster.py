"""How a process finds the others; jax's own readers of clusters run on a made-up environment."""

import os
import time

import jax
import pytest

from soda_jax.errors import UserError
from soda_jax.parallel import hosts, private, startup

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
PREFIXES = ("SLURM_", "JAX_COORD", "JAX_NUM_P", "JAX_PROCESS", "JOB_COMPL", "TPU_", "MEGASCALE_")


@pytest.fixture
def environment(monkeypatch):
    """environment(**variables): nothing of a cluster but these; TPUs only where they are named."""
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def tpu_host(monkeypatch):
    """This machine looks like a TPU VM to jax, in a pod of three, of which it is the second."""
    from jax._src.clusters import cloud_tpu_cluster

    answers = {
        "agent-worker-number": ("1", 200),
        "worker-network-endpoints": ("a:1:10.0.0.5,b:2:10.0.0.6,c:3:10.0.0.7", 200),
        "tpu-env": ("ACCELERATOR_TYPE: 'v4-24'\n", 200),
    }
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", answers.__getitem__)
    return answers


def test_a_laptop_is_alone(environment):
    environment({})
    assert startup.find() is None


def test_flags_say_all_or_nothing(environment):
    environment(SLURM)  # flags go before it
    assert startup.find("here:1", 2, 1) == startup.Found("flags", "here:1", 2, 1)
    assert startup.find(count=1) is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("here:1", None, None), "--coordinator=here:1 without --processes and --process: give"),
        (("here:1", 2, None), "--coordinator=here:1, --processes=2 without --process: give"),
        ((None, 2, 0), "without --coordinator"),
        ((None, None, 0), "--process=0 without --coordinator and --processes"),
        (("here:1", 2, 2), "--process=2 of --processes=2: processes are numbered from 0"),
        (("here:1", 2, -1), "--process=-1 of --processes=2"),
        (("here", 2, 1), "--coordinator=here: write HOST:PORT"),
    ],
)
def test_half_of_the_flags_is_one_clear_error(environment, flags, told):
    environment({})
    with pytest.raises(UserError, match=told) as caught:
        startup.find(*flags)
    assert "\n" not in str(caught.value)


def test_variables_name_a_pod_of_gpus(environment):
    pod = {
        "JAX_COORDINATOR_ADDRESS": "soda-0.soda:1234",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "2",
    }
    environment(pod)
    found = startup.find()
    assert found == startup.Found("JAX_COORDINATOR_ADDRESS", "soda-0.soda:1234", 4, 2)
    environment({"JAX_PROCESS_ID": "3"})
    assert startup.find() == startup.Found("JAX_COORDINATOR_ADDRESS", "soda-0.soda:1234", 4, 3)
    environment({"JAX_NUM_PROCESSES": "1"})
    assert startup.find() is None


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "=a:1 without JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "2"}, "=2 without JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not a whole number"),
        ({"JOB_COMPLETION_INDEX": "0"}, "indexed Job.*set JAX_COORDINATOR_ADDRESS .* and JAX_NUM"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, "SLURM_NTASKS=8, but SLURM_STEP_NODELIST"),
        ({**SLURM, "SLURM_PROCID": "x"}, "Slurm was found, but not the processes"),
    ],
)
def test_half_of_an_environment_is_one_clear_error(environment, monkeypatch, variables, told):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no kubernetes package
    environment(variables)
    with pytest.raises(UserError, match=told) as caught:
        startup.find()
    assert "\n" not in str(caught.value)


def test_slurm_needs_nothing_said(environment):
    environment(SLURM)
    found = startup.find()
    assert (found.way, found.count, found.number) == ("Slurm", 4, 3)
    host, port = found.coordinator.split(":")
    assert host == "node007" and 1024 < int(port) < 65536
    assert str(found) == f"process 3 of 4 by Slurm, coordinator {found.coordinator}"
    environment({"JAX_COORDINATOR_ADDRESS": "node007:99"})
    assert startup.find().coordinator == "node007:99"


def test_a_slurm_job_of_one_task_is_alone(environment):
    environment({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert startup.find() is None


@pytest.mark.parametrize(
    ("tasks", "visible", "local", "devices"),
    [
        ("1(x4)", "0,1,2,3,4,5,6,7", "0", None),  # a task a machine: all of its GPUs
        ("8(x4)", "0,1,2,3,4,5,6,7", "5", (5,)),  # a task a GPU
        ("2(x4)", "0,1,2,3,4,5,6,7", "1", (4, 5, 6, 7)),
        ("8(x4)", "3", "3", None),  # Slurm shows each task its own
        ("8(x4)", "", "3", (3,)),
        ("8(x3),1", "0,1", "0", None),
    ],
)
def test_slurm_tasks_of_one_machine_share_its_gpus(environment, tasks, visible, local, devices):
    environment({**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": local})
    environment({"CUDA_VISIBLE_DEVICES": visible})
    assert startup.find().devices == devices


def test_a_cloud_tpu_pod_is_found_in_its_metadata(environment, tpu_host, monkeypatch):
    monkeypatch.setattr("socket.gethostbyname", lambda name: name)
    environment({})
    assert startup.find() == startup.Found("Cloud TPU", "10.0.0.5:8482", 3, 1)
    environment({"JAX_PLATFORMS": "cpu"})  # a look at something on one of its hosts
    assert startup.find() is None


def test_a_single_tpu_vm_is_alone(environment, tpu_host):
    environment({})
    tpu_host["worker-network-endpoints"] = ("a:1:10.0.0.5", 200)
    tpu_host["agent-worker-number"] = ("0", 200)
    assert startup.find() is None


def test_metadata_that_does_not_answer_is_one_clear_error(environment, monkeypatch, tpu_host):
    tpu_host.clear()
    environment({})
    with pytest.raises(UserError, match=r"Cloud TPU: its metadata cannot be read.*--processes=1"):
        startup.find()


def test_two_slices_on_gke_are_one_run(environment, tpu_host, monkeypatch):
    monkeypatch.setattr("socket.gethostbyname", lambda name: name)
    environment(
        {
            "TPU_WORKER_HOSTNAMES": "soda-1-0.soda,soda-1-1.soda",
            "TPU_WORKER_ID": "1",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "soda-0-0.soda",
            "JOB_COMPLETION_INDEX": "1",
        }
    )
    assert startup.find() == startup.Found("GKE TPU", "soda-0-0.soda:8482", 4, 3)


class Service:
    """A coordination service that knows nothing and never answers a listener."""

    def key_value_set(self, key, value, allow_overwrite=False):
        pass

    def key_value_dir_get(self, key):
        return []

    def blocking_key_value_get(self, key, milliseconds):
        time.sleep(0.2)
        raise RuntimeError("DEADLINE_EXCEEDED: nothing")


def test_start_joins_as_it_was_found_and_says_so_once(environment, monkeypatch, capsys):
    environment(SLURM)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append((a, k)))
    monkeypatch.setattr(private, "client", Service)
    monkeypatch.setattr(private, "hold_aborts", lambda: None)
    monkeypatch.setattr(hosts, "_peers", None)
    for number in "30":
        monkeypatch.setenv("SLURM_PROCID", number)
        found = hosts.start()
        hosts._peers.leave()
        arguments, options = joined.pop()
        assert arguments == (found.coordinator, 4, int(number))
        assert options["cluster_detection_method"] == "deactivate"
        # The second net holds within two minutes, but after the first.
        assert 60 < options["heartbeat_timeout_seconds"] < 120
        assert options["shutdown_timeout_seconds"] < 120
    told = capsys.readouterr().err
    assert told == f"process 0 of 4 by Slurm, coordinator {found.coordinator}\n"


def test_start_alone_joins_nothing(environment, monkeypatch):
    environment({})
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("joined"))
    assert hosts.start() is None


def test_times_that_are_none_are_named(environment, monkeypatch):
    environment({})
    monkeypatch.setenv("SODA_LOST_SECONDS", "soon")
    with pytest.raises(UserError, match="SODA_LOST_SECONDS=soon: give seconds"):
        hosts.start()
