"""The heartbeat between processes, with a fake coordination service and a fake clock."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from soda_jax.parallel.heartbeat import LOST, Heartbeat


class Service:
    """A key-value store; every call fails if `down` is set."""

    def __init__(self):
        self.values, self.down = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.down or (key in self.values and not allow_overwrite):
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        if self.down:
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def blocking_key_value_get(self, key, milliseconds):
        if self.down:
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        return self.values[key]


@pytest.fixture
def run():
    """A run of three processes: service, clock (a list of one number), heartbeats, exits."""
    service, clock, exits = Service(), [0.0], []

    def make(index):
        return Heartbeat(
            service,
            index,
            3,
            60.0,
            clock=lambda: clock[0],
            exit_process=lambda status: exits.append((index, status)),
        )

    return service, clock, [make(index) for index in range(3)], exits


def test_a_process_without_heartbeat_is_lost_and_ends_the_others(run, capfd, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    service, clock, processes, exits = run
    for now in range(0, 100, 5):
        clock[0] = float(now)
        for process in processes[: 2 if now >= 20 else 3]:
            if not exits:
                process.beat()
    assert exits == [(0, LOST)] and LOST not in (0, 2, 75)
    message, status = json.loads(service.values["soda/end/1"])
    assert message.startswith("process 2 failed: no heartbeat for 60 s") and status == LOST
    processes[1]._listen()
    assert exits == [(0, LOST), (1, LOST)]
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"soda: process {index} of 3: {message}" for index in (0, 1)]


def test_process_0_receives_its_message_last_and_exits_late(run, monkeypatch):
    service, _, processes, exits = run
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    processes[1].end_all("process 1 stopped: a bug", 1)
    assert [key for key in service.values if "/end/" in key] == ["soda/end/2", "soda/end/0"]
    assert exits == [(1, 1)] and not waited
    processes[0]._listen()
    assert exits == [(1, 1), (0, 1)] and waited and waited[0] > 1


def test_slow_heartbeats_and_a_regular_exit_are_no_loss(run):
    _, clock, processes, exits = run
    processes[2].beat()
    processes[2].stop()
    for now in range(0, 600, 25):
        clock[0] = float(now)
        for process in processes[:2]:
            process.beat()
    assert not exits


def test_processes_that_were_all_suspended_do_not_count_as_lost(run):
    _, clock, processes, exits = run
    for clock[0] in (0.0, 1000.0, 1005.0):
        for process in processes:
            process.beat()
    assert not exits


@pytest.fixture
def coordinator():
    """A server on this machine that sends bytes and keeps connections open."""
    with socket.create_server(("localhost", 0)) as server:
        yield server, f"localhost:{server.getsockname()[1]}"


@pytest.mark.parametrize("hung", [True, False])
def test_a_coordinator_that_is_gone_or_hangs_is_reported_as_process_0(
    run, coordinator, capfd, hung
):
    service, clock, _, _ = run
    server, address = coordinator
    exits = []

    class ExitError(Exception):
        pass

    def exit_process(status):
        exits.append(status)
        raise ExitError

    process = Heartbeat(
        service,
        1,
        3,
        2.0,
        coordinator=address,
        clock=lambda: clock[0],
        exit_process=exit_process,
    )

    def hold():
        with pytest.raises(ExitError):
            process._hold_connection()

    holding = threading.Thread(target=hold)
    holding.start()
    connection, _ = server.accept()
    connection.send(b"hello")
    connection.close()  # the service closes a silent connection: no loss
    connection, _ = server.accept()
    assert not exits
    if hung:
        service.down = True
        for clock[0] in np.arange(0, 3, 0.25):
            process.beat()
            time.sleep(0.6)
    else:
        server.close()
        connection.close()
    holding.join(20)
    connection.close()
    assert exits == [LOST] and not holding.is_alive()
    message = capfd.readouterr().err
    assert message.startswith(
        "soda: process 1 of 3: process 0 failed: no connection to its coordinator ("
    )
    assert message.count("\n") == 1 and ("no answer for 2 s" in message) == hung
