"""With one process; two processes are in tests/checkpoints/test_two_processes.py."""

from soda_jax.parallel import hosts


def test_one_process_answers_for_itself(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    hosts.start()  # alone: must not look for a coordinator
    assert hosts.alone() and hosts.is_first()
    assert hosts.any_process(True) and not hosts.any_process(False)
    assert hosts.all_processes(True) and not hosts.all_processes(False)
    assert hosts.broadcast_json({"step": 3, "ü": [1.5, None]}) == {"step": 3, "ü": [1.5, None]}
    hosts.barrier("here")
