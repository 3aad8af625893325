"""Runs a server with the toy model in a thread, and sends it requests."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from soda_jax.serve.app import Server
from soda_jax.serve.checks import Limits


class Client:
    """Sends requests to a server on this machine."""

    def __init__(self, port: int):
        self.port = port

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPResponse]:
        """Returns (status, content, response); a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.read(), response
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """Returns the JSON of an answer with the expected status."""
        found, content, _ = self(method, path, body)
        assert found == status, (found, content[:200])
        return json.loads(content)


@contextlib.contextmanager
def running(model: Any, **limits: Any) -> Iterator[Client]:
    """Yields a client of a server that ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]
        server = Server(model, name="toy", hosts=hosts, slots=2, limits=Limits(**limits))
        config = uvicorn.Config(
            server.app, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=5
        )
        program = uvicorn.Server(config)
        thread = threading.Thread(target=program.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(port)
        finally:
            server.stop()
            program.should_exit = True
            thread.join(timeout=60)
            server.close()
