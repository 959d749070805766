"""An HTTP server that answers as the hub of models does: what a repository holds, and its files."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")
"""Files that lie elsewhere: the hub sends who asks on to there."""
TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """Repositories by name, each a folder; what was asked for is written down."""

    folders: dict[str, Path] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path
    endpoint: str = ""
    elsewhere: str = ""  # another host, for large files

    def files_asked(self, method: str = "GET") -> list[str]:
        """Return the names of the files that were asked for, in order."""
        paths = [path for how, path in self.asked if how == method]
        return [path.rpartition("/")[2] for path in paths if "/resolve/" in path or "/cdn/" in path]

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        words = urlsplit(path).path.strip("/").split("/")
        if words[0] == "cdn":
            return 200, {}, (self.folders["/".join(words[1:3])] / words[3]).read_bytes()
        is_api = words[:2] == ["api", "models"]
        name, what, rest = _split(words[2:] if is_api else words)
        if name not in self.folders or (name in self.private and authorization != f"Bearer {TOKEN}"):
            told = "Repository not found" if authorization else "Invalid username or password."
            code = 404 if authorization else 401  # who is nobody is not told which
            return code, {"X-Error-Code": "RepoNotFound", "X-Error-Message": told}, b""
        folder = self.folders[name]
        commit = sha1(repr([(file.name, file.stat().st_mtime_ns) for file in _files(folder)]).encode())
        if is_api and what == "revision":
            return 200, {}, json.dumps({"id": name, "sha": commit.hexdigest(), "private": False}).encode()
        if is_api and what == "tree":
            return 200, {}, json.dumps([_entry(file) for file in _files(folder)]).encode()
        return self._file(name, folder / rest[-1], commit.hexdigest())

    def _file(self, name: str, file: Path, commit: str) -> tuple[int, dict[str, str], bytes]:
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        entry = _entry(file)
        headers = {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": commit}
        if "lfs" not in entry:
            return 200, headers, file.read_bytes()
        linked = {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{entry["lfs"]["oid"]}"'}
        return 302, headers | linked | {"Location": f"{self.elsewhere}/cdn/{name}/{file.name}"}, b""


def _split(words: list[str]) -> tuple[str, str, list[str]]:
    """Part a path at the word after a repository's name: of one word or two."""
    for place, word in enumerate(words):
        if word in ("revision", "tree", "resolve"):
            return "/".join(words[:place]), word, [unquote(rest) for rest in words[place + 1 :]]
    return "/".join(words), "", []


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _entry(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    entry = {"type": "file", "path": file.name, "size": len(data), "oid": sha1(data).hexdigest()}
    if file.suffix in LARGE:
        entry["lfs"] = {"oid": sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


@contextlib.contextmanager
def running_hub(folders: dict[str, Path]) -> Iterator[Hub]:
    """Start a hub of some repositories on a free port of the loopback device and yield it."""
    hub = Hub(folders)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append((self.command, self.path))
            code, headers, body = hub.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint, hub.elsewhere = (
        f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
