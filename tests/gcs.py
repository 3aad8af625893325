"""A bucket in this process: as much of the JSON API of Google Cloud Storage as gcsfs, Orbax and
TensorStore use, with generations and preconditions, over a dict.

Tests that want it are skipped where gcsfs is not installed. The clients read once where the store is, so
all tests of a process share one.
"""

import base64
import functools
import itertools
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
import pytest

BUCKET = "bucket"


def require_bucket() -> str:
    """The URL of a bucket that the tests of this process share; use a folder in it for each test."""
    for module in ("gcsfs", "google.cloud.storage"):
        pytest.importorskip(module)
    return _start()


@functools.cache
def _start() -> str:
    server = Server(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = address
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    os.environ["NO_GCE_CHECK"] = "true"  # nobody looks for a metadata server
    return f"gs://{BUCKET}"


class Server(ThreadingHTTPServer):
    """Says nothing when a client hangs up."""

    daemon_threads = True

    def handle_error(self, *_):
        """Silence."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # an answer in one packet: 40 ms less
    objects: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - shared by all requests
    uploads: dict[str, tuple[str, dict, bytes]] = {}  # noqa: RUF012
    numbers = itertools.count(1)
    lock = threading.Lock()

    def log_message(self, *_):
        """Silence."""

    def do_GET(self):
        self._route("GET")

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def do_DELETE(self):
        self._route("DELETE")

    def _route(self, method):
        body = self._body()
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.lock:
            status, headers, answer = self._answer(method, url.path, query, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
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
            place = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o"
            return 200, {"Location": f"{place}?uploadType=resumable&upload_id={number}"}, b""
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
    """What stands in a part of a multipart message, behind its headers."""
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
