"""Finding the processes of a run; jax's cluster detection reads a fake environment."""

import os
import time

import jax
import pytest

from soda_jax.errors import UserError
from soda_jax.parallel import cluster, hosts

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
PREFIXES = (
    "SLURM_",
    "OMPI_",
    "JAX_COORD",
    "JAX_NUM_P",
    "JAX_PROCESS",
    "JOB_COMPL",
    "TPU_",
    "MEGASCALE_",
)


@pytest.fixture
def environment(monkeypatch):
    """environment(variables): no cluster variables except these; a TPU only with `tpu_host`."""
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
    """Makes jax take this machine for a TPU VM, the second host of a pod of three."""
    from jax._src.clusters import cloud_tpu_cluster

    answers = {
        "agent-worker-number": ("1", 200),
        "worker-network-endpoints": ("a:1:10.0.0.5,b:2:10.0.0.6,c:3:10.0.0.7", 200),
        "tpu-env": ("ACCELERATOR_TYPE: 'v4-24'\n", 200),
    }
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", answers.__getitem__)
    return answers


def test_a_laptop_is_single_process(environment):
    environment({})
    assert cluster.find_processes() is None


def test_flags_override_the_environment(environment):
    environment(SLURM)
    assert cluster.find_processes("here:1", 2, 1) == cluster.ProcessInfo("flags", "here:1", 2, 1)
    assert cluster.find_processes(count=1) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("here:1", None, None), "--coordinator=here:1 without --processes and --process: pass"),
        (("here:1", 2, None), "--coordinator=here:1, --processes=2 without --process: pass"),
        ((None, 2, 0), "without --coordinator"),
        ((None, None, 0), "--process=0 without --coordinator and --processes"),
        (("here:1", 2, 2), "--process=2 with --processes=2: the index must be in 0–1"),
        (("here:1", 2, -1), "--process=-1 with --processes=2"),
        (("here", 2, 1), "--coordinator=here must be HOST:PORT"),
    ],
)
def test_incomplete_flags_are_one_clear_error(environment, flags, message):
    environment({})
    with pytest.raises(UserError, match=message) as caught:
        cluster.find_processes(*flags)
    assert "\n" not in str(caught.value)


def test_variables_describe_a_pod_of_gpus(environment):
    pod = {
        "JAX_COORDINATOR_ADDRESS": "soda-0.soda:1234",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "2",
    }
    environment(pod)
    found = cluster.find_processes()
    assert found == cluster.ProcessInfo("JAX_COORDINATOR_ADDRESS", "soda-0.soda:1234", 4, 2)
    environment({"JAX_PROCESS_ID": "3"})
    assert cluster.find_processes() == cluster.ProcessInfo(
        "JAX_COORDINATOR_ADDRESS", "soda-0.soda:1234", 4, 3
    )
    environment({"JAX_NUM_PROCESSES": "1"})
    assert cluster.find_processes() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "=a:1 without JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "2"}, "=2 without JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not an integer"),
        ({"JOB_COMPLETION_INDEX": "0"}, "indexed Job.*set JAX_COORDINATOR_ADDRESS .* and JAX_NUM"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, "SLURM_NTASKS=8, but SLURM_STEP_NODELIST"),
        ({**SLURM, "SLURM_PROCID": "x"}, "Slurm was detected, but jax cannot find its processes"),
    ],
)
def test_an_incomplete_environment_is_one_clear_error(environment, monkeypatch, variables, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no kubernetes package
    environment(variables)
    with pytest.raises(UserError, match=message) as caught:
        cluster.find_processes()
    assert "\n" not in str(caught.value)


def test_slurm_needs_no_flags(environment):
    environment(SLURM)
    found = cluster.find_processes()
    assert (found.method, found.count, found.index) == ("Slurm", 4, 3)
    host, port = found.coordinator.split(":")
    assert host == "node007" and 1024 < int(port) < 65536
    assert str(found) == f"process 3 of 4 from Slurm, coordinator {found.coordinator}"
    environment({"JAX_COORDINATOR_ADDRESS": "node007:99"})
    assert cluster.find_processes().coordinator == "node007:99"


def test_a_slurm_job_of_one_task_is_single_process(environment):
    environment({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert cluster.find_processes() is None


@pytest.mark.parametrize(
    ("tasks", "visible", "local", "devices"),
    [
        ("1(x4)", "0,1,2,3,4,5,6,7", "0", None),  # one task per machine uses all of its GPUs
        ("8(x4)", "0,1,2,3,4,5,6,7", "5", (5,)),  # one task per GPU
        ("2(x4)", "0,1,2,3,4,5,6,7", "1", (4, 5, 6, 7)),
        ("8(x4)", "3", "3", None),  # Slurm shows each task one GPU
        ("8(x4)", "", "3", (3,)),
        ("8(x3),1", "0,1", "0", None),
    ],
)
def test_slurm_tasks_of_one_machine_share_its_gpus(environment, tasks, visible, local, devices):
    environment({**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": local})
    environment({"CUDA_VISIBLE_DEVICES": visible})
    assert cluster.find_processes().local_devices == devices


def test_open_mpi_needs_no_flags(environment):
    environment(
        {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        }
    )
    found = cluster.find_processes()
    assert (found.method, found.count, found.index) == ("Open MPI", 4, 3)
    assert found.coordinator.startswith("10.96.0.1:") and found.local_devices == (2, 3)


def test_a_cloud_tpu_pod_is_detected_from_its_metadata(environment, tpu_host, monkeypatch):
    monkeypatch.setattr("socket.gethostbyname", lambda name: name)
    environment({})
    assert cluster.find_processes() == cluster.ProcessInfo("Cloud TPU", "10.0.0.5:8482", 3, 1)
    environment({"JAX_PLATFORMS": "cpu"})  # a CPU process on one of its hosts
    assert cluster.find_processes() is None


def test_a_single_tpu_vm_is_single_process(environment, tpu_host):
    environment({})
    tpu_host["worker-network-endpoints"] = ("a:1:10.0.0.5", 200)
    tpu_host["agent-worker-number"] = ("0", 200)
    assert cluster.find_processes() is None


def test_metadata_that_does_not_answer_is_one_clear_error(environment, monkeypatch, tpu_host):
    tpu_host.clear()
    environment({})
    with pytest.raises(UserError, match=r"Cloud TPU: its metadata cannot be read.*--processes=1"):
        cluster.find_processes()


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
    assert cluster.find_processes() == cluster.ProcessInfo("GKE TPU", "soda-0-0.soda:8482", 4, 3)


class Service:
    """An empty coordination service whose blocking calls time out."""

    def key_value_set(self, key, value, allow_overwrite=False):
        pass

    def key_value_dir_get(self, key):
        return []

    def blocking_key_value_get(self, key, milliseconds):
        time.sleep(0.2)
        raise RuntimeError("DEADLINE_EXCEEDED: nothing")


def test_start_initializes_jax_with_what_was_found_and_prints_it_once(
    environment, monkeypatch, capsys
):
    environment(SLURM)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(hosts, "_client", Service)
    monkeypatch.setattr(hosts, "_heartbeat", None)
    for index in "30":
        monkeypatch.setenv("SLURM_PROCID", index)
        found = hosts.start()
        hosts._heartbeat.stop()
        arguments, options = calls.pop()
        assert arguments == (found.coordinator, 4, int(index))
        assert options["cluster_detection_method"] == "deactivate"
        # The fallback: later than our heartbeat, within two minutes.
        assert 60 < options["heartbeat_timeout_seconds"] < 120
        assert options["shutdown_timeout_seconds"] < 120
    output = capsys.readouterr().err
    assert output == f"process 0 of 4 from Slurm, coordinator {found.coordinator}\n"


def test_start_of_a_single_process_initializes_nothing(environment, monkeypatch):
    environment({})
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("initialized"))
    assert hosts.start() is None


def test_an_invalid_timeout_is_named(environment, monkeypatch):
    environment({})
    monkeypatch.setenv("SODA_LOST_SECONDS", "soon")
    with pytest.raises(UserError, match="SODA_LOST_SECONDS=soon must be a number of seconds"):
        hosts.start()
