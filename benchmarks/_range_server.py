"""A web server for byte ranges that delays its answers, like an object store.

    python benchmarks/_range_server.py FOLDER

It prints its port. `http://localhost:PORT/SECONDS/NAME` is the file NAME of the folder; the answer starts
SECONDS after the request.
"""

import asyncio
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, root: Path) -> None:
    """Answers the requests of one connection until the client closes it."""
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
            _, seconds, name = head.split(" ", 2)[1].split("/", 2)
            await asyncio.sleep(float(seconds))
            writer.write(response(head, root / unquote(name)))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def response(head: str, path: Path) -> bytes:
    """Returns the header and the bytes of a file, or of the range that the request names."""
    if not path.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    size = path.stat().st_size
    match = re.search(r"\brange: bytes=(\d+)-(\d+)", head, re.IGNORECASE)
    start, stop = (int(match[1]), min(int(match[2]) + 1, size)) if match else (0, size)
    status = "206 Partial Content" if match else "200 OK"
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {stop - start}", 'ETag: "1"']
    if match:
        lines.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        body = os.pread(descriptor, stop - start, start)
    finally:
        os.close(descriptor)
    if head.startswith("HEAD"):
        body = b""
    return "\r\n".join([*lines, "", ""]).encode() + body


async def main() -> None:
    """Serves a folder until the process is killed."""
    root = Path(sys.argv[1])
    server = await asyncio.start_server(lambda r, w: answer(r, w, root), "localhost", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
