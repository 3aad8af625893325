"""A bucket in the memory of this process, for the real clients of Google Cloud Storage.

It serves the part of the JSON API that gcsfs, Orbax and TensorStore use, with generations and preconditions.
`FAULTS` makes reads slow, fail, or return wrong bytes. The clients keep the address of the store, so all tests
of a process share one bucket.
"""

import base64
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
import pytest

BUCKET = "bucket"


def require_bucket() -> str:
    """Returns the URL of the bucket; skips the test if the clients that checkpoints need are missing.

    Each test should use a separate folder in the bucket.
    """
    for module in ("gcsfs", "google.cloud.storage"):
        pytest.importorskip(module)
    start_server()
    return f"gs://{BUCKET}"


@functools.cache
def start_server() -> str:
    """Starts the server and sets the variables that lead the clients to it; returns its http:// URL."""
    server = Server(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    os.environ["NO_GCE_CHECK"] = "true"  # do not look for a metadata server
    return address


def upload(source: Path, folder: str) -> None:
    """Replaces a folder of the bucket by the files of a local folder."""
    with Handler.lock:
        for name in [name for name in Handler.objects if name.startswith(f"{folder}/")]:
            del Handler.objects[name]
        for path in source.rglob("*"):
            if path.is_file():
                name = f"{folder}/{path.relative_to(source)}"
                Handler.objects[name] = next(Handler.numbers), path.read_bytes()


@dataclasses.dataclass
class Faults:
    """How reads of objects fail; each count is the number of reads that will be affected.

    Attributes:
      seconds: delay of every read.
      only: reads of objects without this in their name do not fail.
      failures: reads answered with `status`.
      status: HTTP status of a failure.
      resets: reads whose connection is closed before the answer.
      short: reads whose connection is closed in the middle of the answer.
      flips: reads with one wrong bit.
      hangs: reads that are not answered.
      asked: number of reads by object.
      most_at_once: largest number of simultaneous reads.
    """

    seconds: float = 0.0
    only: str = ""
    failures: int = 0
    status: int = 503
    resets: int = 0
    short: int = 0
    flips: int = 0
    hangs: int = 0
    asked: Counter[str] = dataclasses.field(default_factory=Counter)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Ends all faults and sets the counts to zero."""
        self.__init__()

    @contextlib.contextmanager
    def reading(self, name: str):
        """Counts and delays a read; yields the name of its fault, or an empty string."""
        with self._lock:
            self.asked[name] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self._take() if self.only in name else ""
        try:
            time.sleep(3600 if fault == "hangs" else self.seconds)
            yield fault
        finally:
            with self._lock:
                self._at_once -= 1

    def _take(self) -> str:
        for fault in ("failures", "resets", "short", "flips", "hangs"):
            if left := getattr(self, fault):
                setattr(self, fault, left - 1)
                return fault
        return ""


FAULTS = Faults()


class Server(ThreadingHTTPServer):
    """Does not print errors of connections that a client has closed."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """Prints nothing."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # an answer in one packet: 40 ms less
    objects: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - shared by all requests
    uploads: dict[str, tuple[str, dict, bytes]] = {}  # noqa: RUF012
    numbers = itertools.count(1)
    lock = threading.Lock()

    def log_message(self, *_):
        """Prints nothing."""

    def do_GET(self):
        url = urlsplit(self.path)
        media = "alt=media" in url.query or url.path.startswith(f"/{BUCKET}/")
        if not media:
            return self._route("GET")
        name = unquote(re.split(rf"/o/|^/{BUCKET}/", url.path, maxsplit=1)[1])
        with FAULTS.reading(name) as fault:
            self._route("GET", fault)

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def do_DELETE(self):
        self._route("DELETE")

    def _route(self, method, fault=""):
        body = self._body()
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.lock:
            status, headers, answer = self._answer(method, url.path, query, body)
        if fault == "failures":
            status, headers, answer = FAULTS.status, {}, b"a failure that the test asked for"
        if fault == "flips":
            half = len(answer) // 2
            answer = answer[:half] + bytes([answer[half] ^ 16]) + answer[half + 1 :]
        if fault == "resets":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if fault == "short":
            self.close_connection = True
            answer = answer[: len(answer) // 2]
        self.wfile.write(answer)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, method, path, query, body):
        if path == "/batch/storage/v1":
            return self._batch(body)
        if method == "GET" and path.startswith(f"/{BUCKET}/"):  # a public object
            return self._object(method, unquote(path.removeprefix(f"/{BUCKET}/")), {"alt": "media"})
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if not match or match[2] != BUCKET:
            return _json({"error": {"code": 404, "message": f"no {path}"}}, 404)
        if match[1] == "/upload":
            return self._upload(query, body)
        if path.endswith(f"/b/{BUCKET}"):
            return _json({"kind": "storage#bucket", "name": BUCKET, "location": "HERE"})
        if match[3] is None:
            return self._list(query)
        if method == "POST":
            source, _, target = match[3].partition(f"/rewriteTo/b/{BUCKET}/o/")
            return self._copy(unquote(source), unquote(target))
        return self._object(method, unquote(match[3]), query)

    def _object(self, method, name, query):
        if name not in self.objects:
            return _json({"error": {"code": 404, "message": f"no {name}"}}, 404)
        generation, content = self.objects[name]
        if not _agrees(query, generation):
            return _json({"error": {"code": 412, "message": "precondition"}}, 412)
        if method == "DELETE":
            del self.objects[name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return _json(_about(name, generation, content))
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, headers, content
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        if first >= len(content):
            return 416, headers, b""
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return 206, headers, part

    def _put(self, name, content, query):
        if not _agrees(query, self.objects.get(name, (0, b""))[0]):
            return _json({"error": {"code": 412, "message": "precondition"}}, 412)
        generation = next(self.numbers)
        self.objects[name] = generation, content
        return _json(_about(name, generation, content))

    def _upload(self, query, body):
        kind = query.get("uploadType")
        if kind == "media":
            return self._put(query["name"], body, query)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
            _, about, content, _ = body.split(f"--{boundary}".encode())
            name = json.loads(_content(about))["name"]
            return self._put(name, _content(content), query)
        if "upload_id" not in query:  # a resumable upload begins
            number = str(next(self.numbers))
            name = query.get("name") or json.loads(body)["name"]
            self.uploads[number] = name, query, b""
            url = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o"
            return 200, {"Location": f"{url}?uploadType=resumable&upload_id={number}"}, b""
        name, first, content = self.uploads[query["upload_id"]]
        content += body
        if not self.headers.get("Content-Range", "").endswith("/*"):
            return self._put(name, content, first)
        self.uploads[query["upload_id"]] = name, first, content
        return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""

    def _copy(self, source, target):
        if source not in self.objects:
            return _json({"error": {"code": 404, "message": f"no {source}"}}, 404)
        self._put(target, self.objects[source][1], {})
        return _json({"done": True, "resource": _about(target, *self.objects[target])})

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, stop = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix) or name < first or (stop and name >= stop):
                continue
            inside = name[len(prefix) :]
            if delimiter and delimiter in inside:
                prefixes.add(prefix + inside.split(delimiter)[0] + delimiter)
            else:
                items.append(_about(name, *self.objects[name]))
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _batch(self, body):
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
        answers = []
        for method, path in re.findall(rb"^(DELETE|GET) (\S+) HTTP", body, re.MULTILINE):
            url = urlsplit(path.decode())
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            status, _, answer = self._answer(method.decode(), url.path, query, b"")
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n"
                f"Content-Length: {len(answer)}\r\n\r\n{answer.decode()}\r\n"
            )
        whole = "".join(answers) + f"--{boundary}--\r\n"
        return 200, {"Content-Type": f"multipart/mixed; boundary={boundary}"}, whole.encode()


def _content(part):
    """Returns the content of a part of a multipart message, without its headers."""
    return re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")


def _agrees(query, generation):
    wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
    return (wanted is None or int(wanted) == generation) and (
        unwanted is None or int(unwanted) != generation
    )


def _about(name, generation, content):
    crc = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": BUCKET,
        "size": str(len(content)),
        "generation": str(generation),
        "metageneration": "1",
        "crc32c": crc,
        "updated": "2026-01-01T00:00:00Z",
        "timeCreated": "2026-01-01T00:00:00Z",
    }


def _json(value, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
