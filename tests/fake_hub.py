"""A hub on this machine: what huggingface_hub asks of the real one, answered from a folder of shards."""

import hashlib
import json
import math
import re
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

ALWAYS = math.inf
BLOCK = 1 << 16


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose method and path hold ``where``."""

    kind: str
    where: str
    times: float
    status: int = 0
    body: bytes = b"{}"
    seconds: float = 0


class FakeHub:
    """Serves the files below ``folder`` as the data set ``dataset_id`` while its with-block lasts.

    Set HF_ENDPOINT to ``url`` for other processes (``env`` has all that they need), or call ``patch``
    with pytest's monkeypatch for this one. Faults match words of "METHOD /path": shards themselves
    come from "GET /cdn/...", as on the real hub after a redirect to another host.
    """

    def __init__(self, folder, dataset_id="some/rocov2"):
        self.dataset_id = dataset_id
        self.commits = {}  # commit hash -> folder
        self.faults = []
        self.log = []  # [METHOD /path, bytes of the body sent]
        self.push(folder)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "0"}

    def __enter__(self):
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def push(self, folder):
        """Make another folder the newest commit; the earlier ones stay. Returns the commit hash."""
        self.commit = hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()
        self.commits[self.commit] = Path(folder)
        return self.commit

    def patch(self, monkeypatch):
        """Send the library in this process here; its constants were read when it was imported."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        return self

    def answer(self, status, where="", times=ALWAYS, body=b"{}"):
        """Answer requests with a status, most often of an error."""
        self.faults.append(Fault("answer", where, times, status, body))

    def cut(self, where="GET /cdn", times=1):
        """Close the connection half-way through the body."""
        self.faults.append(Fault("cut", where, times))

    def spoil(self, where="GET /cdn", times=1):
        """Send as many bytes as asked for, but one of them wrong."""
        self.faults.append(Fault("spoil", where, times))

    def slow(self, where="GET /cdn", times=1, seconds=1.0):
        """Wait half-way through the body: time to kill the process that asked."""
        self.faults.append(Fault("slow", where, times, seconds=seconds))

    def fault(self, request):
        for fault in self.faults:
            if fault.where in request and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault("none", "", 0)

    def requests(self, where=""):
        """The requests so far, "METHOD /path", that hold ``where``."""
        return [request for request, _ in self.log if where in request]

    def sent(self, where=""):
        """Bytes of the bodies sent so far."""
        return sum(size for request, size in self.log if where in request)

    def files(self, commit):
        """(name, path, sha256) of each file of a commit."""
        root = self.commits[commit]
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return [
            (p.relative_to(root).as_posix(), p, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths
        ]


class Answer(BaseHTTPRequestHandler):
    """One request; a route is a method named after what it answers, given the groups of its pattern."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, url = self.server.hub, urlsplit(self.path)
        self.entry = [f"{self.command} {unquote(url.path)}", 0]
        hub.log.append(self.entry)
        self.query, self.fault = parse_qs(url.query), hub.fault(self.entry[0])
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.query.update(parse_qs(self.rfile.read(length).decode()))
        if self.fault.kind == "answer":
            hidden = {"X-Error-Code": "RepoNotFound"} if self.fault.status in (401, 404) else {}
            return self.reply(self.fault.body, self.fault.status, hidden)
        name = re.escape(hub.dataset_id)
        routes = [
            (rf"/api/datasets/{name}(?:/revision/([^/]+))?", self.info),
            (rf"/api/datasets/{name}/tree/([^/]+)/?(.*)", self.tree),
            (rf"/api/datasets/{name}/paths-info/([^/]+)", self.paths_info),
            (rf"/datasets/{name}/resolve/([^/]+)/(.+)", self.resolve),
            (r"/cdn/([^/]+)/(.+)", self.cdn),
        ]
        for pattern, route in routes:
            match = re.fullmatch(pattern, unquote(url.path))
            if match:
                commit = match[1] if match[1] not in (None, "main") else hub.commit
                if commit not in hub.commits:
                    return self.reply(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                return route(commit, *match.groups()[1:])
        return self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_POST = do_GET

    def info(self, commit):
        siblings = [{"rfilename": name} for name, _, _ in self.server.hub.files(commit)]
        if "blobs" in self.query:
            for entry, (_, path, sha256) in zip(siblings, self.server.hub.files(commit), strict=True):
                size = path.stat().st_size
                lfs = {"sha256": sha256, "size": size, "pointerSize": 134}
                entry |= {"size": size, "blobId": sha256[:40], "lfs": lfs}
        self.json({"id": self.server.hub.dataset_id, "sha": commit, "private": False, "gated": False,
                   "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})  # fmt: skip

    def entries(self, commit):
        return [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": sha256[:40],
             "lfs": {"oid": sha256, "size": path.stat().st_size, "pointerSize": 134}}
            for name, path, sha256 in self.server.hub.files(commit)
        ]  # fmt: skip

    def tree(self, commit, folder):
        self.json([e for e in self.entries(commit) if str(Path(e["path"]).parent) == (folder or ".")])

    def paths_info(self, commit):
        self.json([e for e in self.entries(commit) if e["path"] in self.query.get("paths", [])])

    def resolve(self, commit, name):
        found = {n: (p, sha256) for n, p, sha256 in self.server.hub.files(commit)}
        if name not in found:
            return self.reply(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        path, sha256 = found[name]
        hub = self.server.hub
        headers = {
            "X-Repo-Commit": commit, "X-Linked-Size": path.stat().st_size,
            "X-Linked-Etag": f'"{sha256}"', "ETag": f'"{sha256}"',
            "Location": f"http://localhost:{hub.port}/cdn/{commit}/{name}",
            # The real hub offers xet as well; here whoever takes the offer finds nothing.
            "X-Xet-Hash": sha256,
            "Link": f'<{hub.url}/api/datasets/{hub.dataset_id}/xet-read-token/{commit}>; rel="xet-auth"',
        }  # fmt: skip
        return self.reply(b"", 302, headers)

    def cdn(self, commit, name):
        data = bytearray((self.server.hub.commits[commit] / name).read_bytes())
        whole, status, headers = len(data), 200, {"Accept-Ranges": "bytes", "ETag": '"of the cdn"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
            data, status = data[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
        self.reply(bytes(data), status, headers)

    def json(self, value):
        self.reply(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def reply(self, body, status, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.fault.kind == "spoil" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if self.fault.kind == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        if self.command == "HEAD":
            return
        for start in range(0, len(body), BLOCK):
            if self.fault.kind == "slow" and start >= len(body) // 2:
                time.sleep(self.fault.seconds)
                self.fault = Fault("none", "", 0)
            self.entry[1] += len(body[start : start + BLOCK])  # before whoever asked can look
            try:
                self.wfile.write(body[start : start + BLOCK])
            except ConnectionError:  # whoever asked is gone
                self.close_connection = True
                return

    def log_message(self, *words):
        """Say nothing: the requests are in the log."""
