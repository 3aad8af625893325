"""Ends all processes of a run when one of them fails, and prints one line that names it.

Without this, the other processes hang in a collective, which cannot be canceled, until jax's heartbeat
aborts them with a stack trace and status 134. jax's own hook, `missed_heartbeat_callback`, is not
a replacement: in jaxlib 0.10.2 it raises std::bad_cast, which aborts the process as well. Three
threads run in each process: one writes a heartbeat and reads the heartbeats of the other processes,
one waits for a message that ends the run, and one keeps a connection to process 0 open. They end
the process with `os._exit`, because the main thread may hang forever. Committed checkpoints are not
affected; an unfinished save is discarded.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

# Exit status after another process failed (EX_PROTOCOL in sysexits.h); launchers restart the run.
LOST = 76
RESTART = "restart the run; it resumes from its last checkpoint"
_LEFT = "left"
_DAY = 24 * 3600 * 1000  # milliseconds; timeout of one call, after which it is repeated
_GRACE = 2.0  # seconds that process 0 waits before it exits, so that messages are delivered


class Heartbeat:
    """Watches the other processes of a run from `start` until `stop`."""

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        timeout: float,
        *,
        coordinator: str = "",
        clock: Callable[[], float] = time.monotonic,
        exit_process: Callable[[int], None] = os._exit,
    ):
        """Prepares the threads; `start` starts them.

        Args:
          client: jax's client of the coordination service.
          index: index of this process.
          count: number of processes.
          timeout: seconds without a heartbeat after which a process is considered failed.
          coordinator: `host:port` of process 0; "" opens no connection.
          clock: function that returns seconds; replaced in tests.
          exit_process: function that exits with a status; replaced in tests.
        """
        self._client, self._index, self._count = client, index, count
        self._timeout, self._clock, self._exit_process = timeout, clock, exit_process
        self._coordinator = coordinator
        self._interval = min(5.0, timeout / 4)
        self._last_beats: dict[int, str | None] = {}
        self._last_seen = dict.fromkeys(range(count), clock())
        self._last_answer = clock()
        self._beats = 0
        self._stopped = threading.Event()
        self._exit_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"soda {target.__name__}", daemon=True)
            for target in (self._beat_regularly, self._listen, self._hold_connection)
        ]

    @property
    def detection_time(self) -> float:
        """Upper bound of the time until a failed process is detected, in seconds."""
        return self._timeout + 3 * self._interval

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Announces a normal exit, so that the other processes do not wait for heartbeats."""
        self._stopped.set()
        with contextlib.suppress(Exception):  # process 0 may have exited
            self._client.key_value_set(f"soda/alive/{self._index}", _LEFT, allow_overwrite=True)
            self._client.key_value_set(f"soda/end/{self._index}", "")
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._interval)

    def end_all(self, message: str, status: int = LOST) -> None:
        """Prints `message`, sends it to the other processes so that they exit too, and exits."""
        with self._exit_lock:  # held until the process exits, so that only one message is sent
            self._print(message)
            content = json.dumps([message, status])
            for other in reversed(range(self._count)):  # 0 last: it delivers the messages
                if other != self._index:
                    with contextlib.suppress(Exception):  # the key exists, or process 0 has exited
                        self._client.key_value_set(f"soda/end/{other}", content)
            self._exit(status)

    def _print(self, message: str) -> None:
        line = f"soda: process {self._index} of {self._count}: {' '.join(message.split())}\n"
        os.write(2, line.encode())  # one write, so that lines do not interleave

    def _exit(self, status: int) -> None:
        if self._index == 0:
            time.sleep(_GRACE)
        self._exit_process(status)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                content = self._client.blocking_key_value_get(f"soda/end/{self._index}", _DAY)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # process 0 has exited; _hold_connection reports it
            if content and not self._stopped.is_set():
                message, status = json.loads(content)
                with self._exit_lock:
                    self._print(message)
                    self._exit(status)
            return

    def _beat_regularly(self) -> None:
        while True:
            self.beat()
            if self._stopped.wait(self._interval):
                return

    def beat(self) -> None:
        """Writes one heartbeat, and ends the run if another process's heartbeat is overdue."""
        self._beats += 1
        try:
            self._client.key_value_set(
                f"soda/alive/{self._index}", str(self._beats), allow_overwrite=True
            )
            beats = dict(self._client.key_value_dir_get("soda/alive/"))
        except Exception:
            return  # process 0 does not answer; _hold_connection reports it
        previous, self._last_answer = self._last_answer, self._clock()
        now = self._last_answer
        if now - previous > self._timeout / 2:  # this process was suspended, perhaps others too
            self._last_seen = dict.fromkeys(self._last_seen, now)
        for other in range(self._count):
            beat = beats.get(f"soda/alive/{other}")
            if beat != self._last_beats.get(other) or beat == _LEFT or other == self._index:
                self._last_beats[other], self._last_seen[other] = beat, now
        overdue = [n for n, seen in self._last_seen.items() if now - seen > self._timeout]
        if overdue and not self._stopped.is_set():
            names = ", ".join(map(str, overdue))
            self.end_all(f"process {names} failed: no heartbeat for {self._timeout:g} s; {RESTART}")

    def _hold_connection(self) -> None:
        """Keeps a connection to process 0 open, which breaks as soon as that process dies.

        Without this connection the exit status is unreliable. When process 0 dies, jax's client aborts
        this process after about 0.1 s, usually before a call of the client raises. In a test without
        the connection, the other processes exited with a status other than 76 after 5 of 16 kills of
        process 0; with the connection, after 0 of 12. Received bytes are ignored. The service closes
        idle connections, so this method reconnects.
        """
        if self._index == 0 or not self._coordinator:
            return
        host, _, port = self._coordinator.rpartition(":")
        address = (host.strip("[]"), int(port))
        while not self._stopped.is_set():
            try:
                with _connect(address) as connection:
                    connection.settimeout(self._interval)
                    self._watch(connection)
            except OSError as error:
                self._exit_without_process_0(str(error))

    def _watch(self, connection: socket.socket) -> None:
        """Returns when the connection is closed; raises OSError if process 0 hangs."""
        checked = awake = self._clock()
        while not self._stopped.is_set():
            try:
                if not connection.recv(4096):
                    return
            except TimeoutError:
                pass
            except OSError:
                return
            previous, checked = checked, self._clock()
            if checked - previous > self._timeout / 2:  # this process was suspended
                awake = checked
            silent = checked - max(awake, self._last_answer)
            if silent > self._timeout:
                raise OSError(f"no answer for {silent:.0f} s")

    def _exit_without_process_0(self, reason: str) -> None:
        with self._exit_lock:  # no message: process 0 would deliver it
            if self._stopped.is_set():
                return
            self._print(f"process 0 failed: no connection to its coordinator ({reason}); {RESTART}")
            self._exit_process(LOST)


def _connect(address: tuple[str, int]) -> socket.socket:
    """Opens a connection; tries twice, unless it is refused because process 0 has exited."""
    try:
        return socket.create_connection(address, timeout=1)
    except ConnectionRefusedError:
        raise  # no second try, because jax aborts this process 0.1 s after process 0 exits
    except OSError:
        time.sleep(0.5)
        return socket.create_connection(address, timeout=2)
