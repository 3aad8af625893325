"""Signs of life: a process that is lost, or that fails, ends the others with one line.

When a process is gone the others hang in a collective, which cannot be given up, and jax aborts them
after its heartbeat with a stack trace. So three threads of each process look: one gives a sign of
life and reads those of the others, one listens for the word to end, one holds a connection to
process 0. The main thread may hang for ever, hence `os._exit`: what is saved is safe, a save under way
is left unfinished and does not count.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

# Exit status of a process whose run lost another one: start it again. (EX_PROTOCOL of sysexits.h.)
LOST = 76
AGAIN = "start the run again, it goes on from its last checkpoint"
_LEFT = "left"
_A_DAY = 24 * 3600 * 1000  # milliseconds; the listener then listens anew
_GRACE = 2.0  # seconds that process 0, which carries the messages, outlives its own


class Peers:
    """What one process knows of the others; `start` begins to look, `leave` ends it in order."""

    def __init__(
        self,
        client: Any,
        number: int,
        count: int,
        seconds: float,
        *,
        coordinator: str = "",
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[int], None] = os._exit,
    ):
        """Args:
        client: of the coordination service.
        number: of this process.
        count: processes of the run.
        seconds: without a sign of life after which a process counts as lost.
        coordinator: `host:port` of process 0, to hold a connection with; "" holds none.
        clock: seconds, for tests.
        end_process: ends it at once with a status, for tests.
        """
        self._client, self._number, self._count = client, number, count
        self._seconds, self._clock, self._end_process = seconds, clock, end_process
        self._coordinator = coordinator
        self._every = min(5.0, seconds / 4)
        self._signs: dict[int, str | None] = {}
        self._changed = dict.fromkeys(range(count), clock())
        self._answered = clock()
        self._beats = 0
        self._left = threading.Event()
        self._ending = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"soda {target.__name__}", daemon=True)
            for target in (self._look_regularly, self._listen, self._hold_the_line)
        ]

    @property
    def patience(self) -> float:
        """Seconds after which a process that is gone has surely been found lost."""
        return self._seconds + 3 * self._every

    def start(self) -> None:
        """Begins to give signs of life and to look for those of the others."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Ends in order: the others do not miss this process."""
        self._left.set()
        with contextlib.suppress(Exception):  # the run is over, whoever has gone first
            self._client.key_value_set(f"soda/alive/{self._number}", _LEFT, allow_overwrite=True)
            self._client.key_value_set(f"soda/end/{self._number}", "")
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._every)

    def end(self, message: str, status: int = LOST) -> None:
        """Says `message`, tells it to the others, which end likewise, and ends this process."""
        with self._ending:  # for ever: one message is enough
            self._say(message)
            told = json.dumps([message, status])
            for other in reversed(range(self._count)):  # process 0 last: it carries the messages
                if other != self._number:
                    with contextlib.suppress(Exception):  # it has been told, or none can be
                        self._client.key_value_set(f"soda/end/{other}", told)
            self._leave_at_once(status)

    def _say(self, message: str) -> None:
        line = f"soda: process {self._number} of {self._count}: {' '.join(message.split())}\n"
        os.write(2, line.encode())  # one write: lines of several processes do not mix

    def _listen(self) -> None:
        while not self._left.is_set():
            try:
                told = self._client.blocking_key_value_get(f"soda/end/{self._number}", _A_DAY)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # the coordinator is gone: for _hold_the_line to tell
            if told and not self._left.is_set():
                message, status = json.loads(told)
                with self._ending:
                    self._say(message)
                    self._leave_at_once(status)
            return

    def _leave_at_once(self, status: int) -> None:
        if self._number == 0:
            time.sleep(_GRACE)
        self._end_process(status)

    def _look_regularly(self) -> None:
        while True:
            self.look()
            if self._left.wait(self._every):
                return

    def look(self) -> None:
        """Gives one sign of life and ends the run if that of another process is overdue."""
        self._beats += 1
        try:
            self._client.key_value_set(
                f"soda/alive/{self._number}", str(self._beats), allow_overwrite=True
            )
            signs = dict(self._client.key_value_dir_get("soda/alive/"))
        except Exception:
            return  # the coordinator does not answer: for _hold_the_line to tell
        before, self._answered = self._answered, self._clock()
        now = self._answered
        if now - before > self._seconds / 2:  # this process stood still, and perhaps all of them
            self._changed = dict.fromkeys(self._changed, now)
        for other in range(self._count):
            sign = signs.get(f"soda/alive/{other}")
            if sign != self._signs.get(other) or sign == _LEFT or other == self._number:
                self._signs[other], self._changed[other] = sign, now
        overdue = [n for n, changed in self._changed.items() if now - changed > self._seconds]
        if overdue and not self._left.is_set():
            names = ", ".join(map(str, overdue))
            self.end(f"process {names} was lost: no sign of life for {self._seconds:g} s; {AGAIN}")

    def _hold_the_line(self) -> None:
        """Keeps a bare connection to the coordinator, which breaks the moment that it is gone.

        The client's calls cannot tell: when one fails, jax has mostly locked the client already, to
        abort the process. What the service sends is thrown away; where it hangs up, because we say
        nothing, it is called again.
        """
        if self._number == 0 or not self._coordinator:
            return
        host, _, port = self._coordinator.rpartition(":")
        while not self._left.is_set():
            try:
                with _call((host.strip("[]"), int(port))) as line:
                    line.settimeout(self._every)
                    self._hold(line)
            except OSError as error:
                self._lost_first(str(error))

    def _hold(self, line: socket.socket) -> None:
        looked = awake = self._clock()
        while not self._left.is_set():
            try:
                if not line.recv(4096):
                    return
            except TimeoutError:
                pass
            except OSError:
                return
            before, looked = looked, self._clock()
            if looked - before > self._seconds / 2:  # this process stood still itself
                awake = looked
            silent = looked - max(awake, self._answered)
            if silent > self._seconds:
                raise OSError(f"no answer for {silent:.0f} s")

    def _lost_first(self, reason: str) -> None:
        with self._ending:  # nobody else can be told, and trying takes long
            if self._left.is_set():
                return
            self._say(f"process 0 was lost: its coordinator is gone ({reason}); {AGAIN}")
            self._end_process(LOST)


def _call(address: tuple[str, int]) -> socket.socket:
    """A connection; a second try, because a network may blink."""
    try:
        return socket.create_connection(address, timeout=1)
    except OSError:
        time.sleep(0.5)
        return socket.create_connection(address, timeout=2)
