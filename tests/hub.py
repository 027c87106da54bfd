"""A small hub on this machine: the resolve addresses of the real one, with faults on request."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "a" * 40


@dataclass
class Faults:
    """What goes wrong, by the place of a file (OWNER/REPOSITORY/PATH) or repository.

    Attributes:
        cut: {place: [bytes after which the connection is closed, one for each answer]}.
        stall: {place: bytes after which nothing more comes}.
        change: places whose bytes are not those that the hub says.
        gated: repositories that ask for terms to be accepted.
    """

    cut: dict[str, list[int]] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    change: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)


class Hub:
    """Serves the files below a folder; use as a context manager.

    Attributes:
        asked: (method, place, Range header or None) of every request for a file's bytes or facts.
        tokens, storage_tokens: the Authorization headers that the hub and its storage were sent.
        released: set it to end stalls.
    """

    def __init__(self, root: Path):
        self.root = root
        self.faults = Faults()
        self.asked: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.storage_tokens: set[str | None] = set()
        self.released = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage = f"http://localhost:{self.server.server_address[1]}"  # another host, by name

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        stored = handler.path.startswith("/storage/")
        path = handler.path.removeprefix("/storage").strip("/")
        owner, repository, _, revision, *name = path.split("/")
        place = "/".join([owner, repository, *name])
        if stored:
            self.storage_tokens.add(handler.headers.get("Authorization"))
        else:
            self.tokens.add(handler.headers.get("Authorization"))
        if f"{owner}/{repository}" in self.faults.gated:
            self._refuse(handler, 403, "GatedRepo")
            return
        if not (self.root / owner / repository).is_dir():
            self._refuse(handler, 404, "RepoNotFound")
            return
        path = self.root / place
        if revision not in ("main", REVISION) or not path.is_file():
            self._refuse(handler, 404, "EntryNotFound")
            return
        data = path.read_bytes()
        large = path.suffix in (".safetensors", ".pt", ".bin")
        tag = (
            hashlib.sha256(data).hexdigest()
            if large
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        if large and not stored:
            # As the real one: large files lie elsewhere, where no token belongs.
            self._refuse(
                handler,
                302,
                None,
                {
                    "Location": f"{self.storage}/storage{handler.path}",
                    "X-Linked-ETag": f'"{tag}"',
                    "X-Linked-Size": str(len(data)),
                },
            )
            return
        self.asked.append((handler.command, place, handler.headers.get("Range")))
        if place in self.faults.change:
            data = bytes([data[0] ^ 1]) + data[1:]
        start, status = 0, 200
        if span := handler.headers.get("Range"):
            start, status = int(span.removeprefix("bytes=").split("-")[0]), 206
        handler.send_response(status)
        handler.send_header("X-Repo-Commit", REVISION)
        handler.send_header("ETag", f'"{tag}"')
        handler.send_header("Accept-Ranges", "bytes")
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        if body:
            self._send(handler, place, data[start:])

    def _send(self, handler, place: str, data: bytes) -> None:
        cuts = self.faults.cut.get(place)
        if cuts:
            handler.wfile.write(data[: cuts.pop(0)])
            handler.wfile.flush()
            handler.close_connection = True
        elif place in self.faults.stall:
            handler.wfile.write(data[: self.faults.stall[place]])
            handler.wfile.flush()
            self.released.wait(60)
            handler.close_connection = True
        else:
            handler.wfile.write(data)

    def _refuse(self, handler, status: int, code: str | None, headers: dict | None = None) -> None:
        handler.send_response(status)
        if code:
            handler.send_header("X-Error-Code", code)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("X-Repo-Commit", REVISION)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
