"""Real stores on the loopback interface (versitygw for S3, fake-gcs-server for Google), a hub of the Hugging Face API's shape, and a proxy
that cuts connections."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

from integration.ports import free_port

ROOT = Path(__file__).parents[3]
ACCESS, SECRET = "AKIATESTTESTTESTTEST", "s3cr3t/marker+of=the=store"


def binary(name: str) -> str:
    """The tool, built by hack/tools.sh and cached by content."""
    subprocess.run([str(ROOT / "hack/tools.sh"), name], check=True, capture_output=True, timeout=1800)
    return str(ROOT / "build/bin" / name)


def started(command: list[str], port: int, log: Path) -> subprocess.Popen:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{command[0]} does not answer: {log.read_text()}")


@dataclass
class Store:
    """An object store: its endpoint, and the folder whose folders are its buckets."""

    endpoint: str
    data: Path
    process: subprocess.Popen


def start_s3(folder: Path) -> Store:
    port = free_port()
    data, sidecar = folder / "data", folder / "sidecar"  # a sidecar: the file system of a test may have no extended attributes
    data.mkdir(parents=True)
    sidecar.mkdir()
    command = [
        binary("versitygw"),
        "--access",
        ACCESS,
        "--secret",
        SECRET,
        "--address",
        f"127.0.0.1:{port}",
        "--region",
        "eu-test-1",
        "--sidecar",
        str(sidecar),
        str(data),
    ]
    return Store(f"http://127.0.0.1:{port}", data, started(command, port, folder / "log"))


def start_gcs(folder: Path) -> Store:
    port = free_port()
    command = [binary("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-log-level", "warn"]
    address = f"http://127.0.0.1:{port}"
    command += ["-backend", "memory", "-external-url", address, "-public-host", f"127.0.0.1:{port}"]
    store = Store(address, folder, started(command, port, folder / "log"))
    _post(f"{address}/storage/v1/b", json.dumps({"name": "models"}).encode())
    return store


def upload_gcs(store: Store, name: str, data: bytes) -> None:
    """Put an object into the bucket models by the JSON API, apart from the code under test."""
    _post(f"{store.endpoint}/upload/storage/v1/b/models/o?uploadType=media&name={quote(name, safe='')}", data)


def _post(url: str, data: bytes) -> None:
    request = urllib.request.Request(url, data=data, method="POST", headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).read()


@dataclass
class CuttingProxy:
    """Passes HTTP on, and cuts the first `cuts` bodies longer than `after` bytes behind that many; counts the ranges asked for."""

    target: str
    after: int
    cuts: int
    ranges: list[str] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> CuttingProxy:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                connection = http.client.HTTPConnection(urlsplit(proxy.target).netloc)
                connection.request(self.command, self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                if self.headers.get("Range"):
                    proxy.ranges.append(self.headers["Range"])
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
                self.end_headers()
                if len(body) > proxy.after and proxy.cuts:
                    proxy.cuts -= 1
                    self.wfile.write(body[: proxy.after])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubShapedServer(http.server.BaseHTTPRequestHandler):
    """The two calls of the Hugging Face hub's API that a download makes, over commits held in memory. Not the hub itself.

    `/api/models/OWNER/NAME/revision/REV?blobs=True` lists a commit; `/OWNER/NAME/resolve/COMMIT/FILE` sends a file, an LFS one by a
    redirect to another host as the hub does.
    """

    commits: ClassVar[dict[str, dict[str, bytes]]] = {}
    branches: ClassVar[dict[str, str]] = {}
    lfs: ClassVar[set[str]] = set()
    lies: ClassVar[dict[str, bytes]] = {}  # file -> what is sent instead of what was listed
    seen: ClassVar[list[tuple[str, str | None]]] = []
    token = "hf_t0ken_marker"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.seen.append((path, self.headers.get("Authorization")))
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self._file(self._content(parts[1], "/".join(parts[2:])))
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve(parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "EntryNotFound")

    def _is_allowed(self, repository: str) -> bool:
        return not repository.startswith("private/") or self.headers.get("Authorization") == f"Bearer {self.token}"

    def _api(self, repository: str, revision: str) -> None:
        if repository == "acme/gated":
            self._error(403, "GatedRepo")
        elif not self._is_allowed(repository) or repository.split("/")[1] != "digits":
            self._error(401, "RepoNotFound")
        elif (commit := self.branches.get(revision, revision)) not in self.commits:
            self._error(404, "RevisionNotFound")
        else:
            rows = [self._row(name, data) for name, data in self.commits[commit].items()]
            self._send(200, json.dumps({"id": repository, "sha": commit, "siblings": rows}).encode(), {"Content-Type": "application/json"})

    def _row(self, name: str, data: bytes) -> dict:
        row = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return row | ({"lfs": lfs} if name in self.lfs else {})

    def _resolve(self, commit: str, name: str) -> None:
        if name in self.lfs:
            other = f"http://localhost:{self.server.server_address[1]}/lfs/{commit}/{name}"
            self._send(302, b"", {"Location": other})
        else:
            self._file(self._content(commit, name))

    def _content(self, commit: str, name: str) -> bytes:
        return self.lies.get(name, self.commits[commit][name])

    def _file(self, data: bytes) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers.get("Range") else 0
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, data[start:], headers)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
