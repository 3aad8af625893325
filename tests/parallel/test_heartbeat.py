"""Signs of life, with a coordination service and a clock of the test."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from soda_jax.parallel.peers import LOST, Peers


class Service:
    """The key-value store; `down` makes every call fail."""

    def __init__(self):
        self.values, self.down = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.down or (key in self.values and not allow_overwrite):
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        self.values[key] = value

    def key_value_dir_get(self, place):
        if self.down:
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        return [(key, value) for key, value in self.values.items() if key.startswith(place)]

    def blocking_key_value_get(self, key, milliseconds):
        if self.down:
            raise RuntimeError("UNAVAILABLE: no service\nand more")
        return self.values[key]


@pytest.fixture
def run():
    """A run of three processes: service, clock (a list of one number), processes, who ended how."""
    service, clock, ended = Service(), [0.0], []

    def make(number):
        return Peers(
            service,
            number,
            3,
            60.0,
            clock=lambda: clock[0],
            end_process=lambda status: ended.append((number, status)),
        )

    return service, clock, [make(number) for number in range(3)], ended


def test_a_process_without_a_sign_of_life_is_lost_and_the_others_are_told(run, capfd, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    service, clock, peers, ended = run
    for now in range(0, 100, 5):
        clock[0] = float(now)
        for one in peers[: 2 if now >= 20 else 3]:
            if not ended:
                one.look()
    assert ended == [(0, LOST)] and LOST not in (0, 2, 75)
    told, status = json.loads(service.values["soda/end/1"])
    assert told.startswith("process 2 was lost: no sign of life for 60 s") and status == LOST
    peers[1]._listen()
    assert ended == [(0, LOST), (1, LOST)]
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"soda: process {number} of 3: {told}" for number in (0, 1)]


def test_process_0_is_told_last_and_outlives_its_messages(run, monkeypatch):
    service, _, peers, ended = run
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    peers[1].end("process 1 stopped: a bug", 1)
    assert [key for key in service.values if "/end/" in key] == ["soda/end/2", "soda/end/0"]
    assert ended == [(1, 1)] and not waited
    peers[0]._listen()
    assert ended == [(1, 1), (0, 1)] and waited and waited[0] > 1


def test_slow_signs_and_an_orderly_end_are_no_loss(run):
    _, clock, peers, ended = run
    peers[2].look()
    peers[2].leave()
    for now in range(0, 600, 25):
        clock[0] = float(now)
        for one in peers[:2]:
            one.look()
    assert not ended


def test_processes_that_were_all_suspended_do_not_take_each_other_for_lost(run):
    _, clock, peers, ended = run
    for clock[0] in (0.0, 1000.0, 1005.0):
        for one in peers:
            one.look()
    assert not ended


@pytest.fixture
def coordinator():
    """A server on this machine that says something and never hangs up."""
    with socket.create_server(("localhost", 0)) as server:
        yield server, f"localhost:{server.getsockname()[1]}"


@pytest.mark.parametrize("hung", [True, False])
def test_a_coordinator_that_is_gone_or_hangs_is_process_0(run, coordinator, capfd, hung):
    service, clock, _, _ = run
    server, address = coordinator
    ended = []

    class EndedError(Exception):
        pass

    def end(status):
        ended.append(status)
        raise EndedError

    one = Peers(service, 1, 3, 2.0, coordinator=address, clock=lambda: clock[0], end_process=end)

    def hold():
        with pytest.raises(EndedError):
            one._hold_the_line()

    holding = threading.Thread(target=hold)
    holding.start()
    line, _ = server.accept()
    line.send(b"hello")
    line.close()  # it hangs up on one that says nothing: no loss
    line, _ = server.accept()
    assert not ended
    if hung:
        service.down = True
        for clock[0] in np.arange(0, 3, 0.25):
            one.look()
            time.sleep(0.6)
    else:
        server.close()
        line.close()
    holding.join(20)
    line.close()
    assert ended == [LOST] and not holding.is_alive()
    told = capfd.readouterr().err
    assert told.startswith("soda: process 1 of 3: process 0 was lost: its coordinator is gone (")
    assert told.count("\n") == 1 and ("no answer for 2 s" in told) == hung
