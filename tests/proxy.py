"""A proxy of HTTP that does what networks and stores do: it throttles, breaks off, dawdles, loses answers.

It stands before any S3 server. What happens to a request is decided by a plan: a function of the request,
scripted (`on`) or drawn from a seed (`drawn`). A plan may also call back, before or after the server has done
what it was asked: this is how a test ends a process at an exact step without a hook in the product.
"""

import asyncio
import contextlib
import hashlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

Kind = Literal[
    "pass",  # nothing happens to it
    "slow down",  # 503 SlowDown, and the server never hears of it
    "error",  # 500 InternalError, likewise
    "refuse",  # the connection is reset before the server hears of it
    "lose",  # the server does it, and the connection is reset before the answer
    "break",  # the connection is reset in the middle of the answer
    "cut",  # the answer ends in the middle, and the connection with it
    "dawdle",  # the answer trickles
]
KINDS: tuple[Kind, ...] = ("slow down", "error", "refuse", "lose", "break", "cut", "dawdle")

_ANSWERS = {
    "slow down": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "error": (500, "Internal Server Error", "InternalError", "We encountered an internal error."),
}
_PIECES = 8


@dataclass(frozen=True)
class Request:
    """What a plan is asked about: `times` counts requests of the same method and path, this one included."""

    method: str
    path: str  # decoded, without the query
    query: str
    times: int
    number: int  # of all requests

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'?' + self.query if self.query else ''}"


@dataclass(frozen=True)
class Fault:
    """What happens to one request. The callbacks run while the request waits."""

    kind: Kind = "pass"
    before: Callable[[Request], None] | None = None
    after: Callable[[Request], None] | None = None
    seconds: float = 0.2  # that an answer takes when it trickles


Plan = Callable[[Request], Fault | None]


def on(method: str, path: str, fault: Fault, *, times: range = range(1, 2)) -> Plan:
    """Return a plan for the requests of a method whose path a pattern finds; `times`: which repetitions."""
    pattern = re.compile(path)

    def plan(request: Request) -> Fault | None:
        fits = request.method == method and pattern.search(request.path) and request.times in times
        return fault if fits else None

    return plan


def drawn(seed: int, *, rate: float, kinds: tuple[Kind, ...] = KINDS, most: int = 3) -> Plan:
    """Return a plan that disturbs a share of all requests, drawn by seed, method, path and repetition.

    No path is disturbed more than `most` times: what a client must bear is bounded, and so is its patience.
    """

    def plan(request: Request) -> Fault | None:
        if request.times > most:
            return None
        text = f"{seed} {request.method} {request.path} {request.query} {request.times}"
        draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        share, kind = divmod(draw, len(kinds))
        return Fault(kinds[kind]) if share % 10_000 < rate * 10_000 else None

    return plan


@dataclass
class Proxy:
    """A proxy at `endpoint`. `plan` may be replaced at any time; `forget` starts its counts anew."""

    upstream: str
    plan: Plan | None = None
    endpoint: str = ""
    seen: list[str] = field(default_factory=list)  # every request, as it came
    done: Counter[str] = field(default_factory=Counter)  # faults, by kind
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)

    def forget(self, plan: Plan | None = None) -> None:
        """Start anew with another plan."""
        self.plan = plan
        self.seen.clear()
        self.done.clear()
        self._times.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after another."""
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the proxy goes
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection lives on."""
        line, headers = await _head(reader)
        if not line:
            return False
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        body = await _request_body(reader, headers)
        request = self._count(line)
        fault = (self.plan(request) if self.plan else None) or Fault()
        if fault.kind != "pass":
            self.done[fault.kind] += 1
        if fault.before:
            await asyncio.to_thread(fault.before, request)
        if fault.kind == "refuse":
            return _reset(writer)
        if fault.kind in _ANSWERS:
            answer = _answer(*_ANSWERS[fault.kind], request.method)
        else:
            answer = await self._forward(line, headers, body)
        if fault.after:
            await asyncio.to_thread(fault.after, request)
        return await _send(writer, answer, fault)

    def _count(self, line: str) -> Request:
        method, target, _ = line.split(" ", 2)
        parts = urlsplit(target)
        path = unquote(parts.path)
        self._times[method, path + parts.query] += 1
        request = Request(method, path, parts.query, self._times[method, path + parts.query], len(self.seen))
        self.seen.append(str(request))
        return request

    async def _forward(self, line: str, headers: dict[str, str], body: bytes) -> bytes:
        """Return the whole answer of the server."""
        server = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(server.hostname, server.port)
        hop = {name: value for name, value in headers.items() if name not in ("expect", "connection")}
        lines = [line, *(f"{name}: {value}" for name, value in hop.items()), "connection: close", "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """Return the first line and the headers of a request, '' at the end of a connection."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return "", {}
    line, *fields = text.rstrip("\r\n").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    return line, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _request_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Return the body as it stands on the wire, chunk marks included."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    pieces = []
    while True:
        size = await reader.readuntil(b"\r\n")
        length = int(size.split(b";")[0], 16)
        pieces += [size, await reader.readexactly(length + 2)]
        if not length:
            return b"".join(pieces)


def _answer(status: int, reason: str, code: str, message: str, method: str) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)


async def _send(writer: asyncio.StreamWriter, answer: bytes, fault: Fault) -> bool:
    """Send an answer, or what a fault leaves of it; return whether the connection lives on."""
    if fault.kind == "lose" or not answer:
        return _reset(writer)
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"date:"))]
    if fault.kind in ("break", "cut"):
        whole = b"\r\n".join([*lines, b"", b""]) + body
        keep = len(whole) - (len(body) + 1) // 2 if body else len(whole) // 2
        writer.write(whole[:keep])
        await writer.drain()
        return _reset(writer) if fault.kind == "break" else False
    framed = any(line.lower().startswith((b"content-length:", b"transfer-encoding:")) for line in lines)
    framed = framed or lines[0].split(b" ")[1] in (b"204", b"304")
    data = b"\r\n".join([*lines, b"connection: " + (b"keep-alive" if framed else b"close"), b"", b""]) + body
    step = -(-len(data) // _PIECES) if fault.kind == "dawdle" else len(data)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        await writer.drain()
        if fault.kind == "dawdle":
            await asyncio.sleep(fault.seconds / _PIECES)
    return framed


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection so that the other side sees a reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
    return False


@contextlib.contextmanager
def running_proxy(upstream: str, plan: Plan | None = None) -> Iterator[Proxy]:
    """Run a proxy before `upstream` on a free loopback port, in a thread of this process."""
    proxy, loop, ready = Proxy(upstream, plan), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20, backlog=512)
        proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
