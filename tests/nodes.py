"""A Ray cluster of several hosts for the tests: network namespaces with addresses of their own.

Every process belongs to one keeper, which ends them all when its standard input does: when the tests do.
"""

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import free_port, keep, let_go, ray_environment, wait_until


@dataclass
class Nodes:
    """A head without CPUs, and nodes of one CPU each."""

    folder: Path
    environment: dict[str, str]
    spaces: list[str]  # network namespaces
    keepers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def start(self) -> None:
        """Start the head."""
        port, dashboard = free_port(), free_port()
        ip = self._ip(0)
        self.address = f"{ip}:{port}"
        options = [
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}",
        ]
        self._ray(
            0, "--head", "--num-cpus=0", f"--temp-dir={self.folder}", f"--dashboard-host={ip}", *options
        )
        self.environment |= {"RAY_ADDRESS": self.address}
        self._stands(0)

    def add(self) -> None:
        """Start a node of one CPU. Nodes that start at once on one disk would take one another's sockets."""
        number = len(self.keepers)
        self._ray(number, f"--address={self.address}", "--num-cpus=1")
        self._stands(number)

    def command(self, *words: str) -> list[str]:
        """Return a command as it is run beside the head."""
        return [*self._inside(0), *words]

    def close(self) -> None:
        """End every node."""
        let_go(*self.keepers)

    def _stands(self, number: int) -> None:
        log, keeper = self.folder / f"node-{number}.log", self.keepers[number]
        wait_until(
            lambda: "will now block" in log.read_text() or keeper.poll() is not None, what=f"node {number}"
        )
        if keeper.poll() is not None:
            raise RuntimeError(f"node {number} ended: {log.read_text()[-1000:]}")

    def _ray(self, number: int, *options: str) -> None:
        ip = f"--node-ip-address={self._ip(number)}"
        agent = f"--dashboard-agent-listen-port={free_port()}"
        words = ["ray", "start", "--block", "--disable-usage-stats", agent, ip, *options]
        log = self.folder / f"node-{number}.log"
        self.keepers.append(keep(words, environment=self.environment, log=log, inside=self._inside(number)))

    def _ip(self, number: int) -> str:
        return f"10.213.7.{number + 1}"

    def _inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self.spaces[number]]


@contextlib.contextmanager
def nodes(folder: Path, *, spaces: int) -> Iterator[Nodes]:
    """Start a head and yield it; nodes are added by `add`.

    Args:
        folder: for Ray's files; its path must be short.
        spaces: so many hosts, the head's among them.
    """
    environment = ray_environment() | {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        "GLOO_SOCKET_IFNAME": "eth0",  # the name of these hosts leads to the loopback device
    }
    with hosts(spaces) as names:
        found = Nodes(folder, environment, names)
        try:
            found.start()
            yield found
        finally:
            found.close()


def why_no_namespaces() -> str:
    """Say why this machine cannot make network namespaces; empty when it can."""
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    name = f"hf-{secrets.token_hex(4)}"  # several processes may ask at once
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return tried.stderr.strip()
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[str]]:
    """Make namespaces that meet on one bridge, inside a namespace of its own."""
    tag = secrets.token_hex(2)
    hub, names = f"hf-{tag}-hub", [f"hf-{tag}-{n}" for n in range(count)]
    made: list[str] = []
    try:
        for name in (hub, *names):
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for n, name in enumerate(names):
            _ip("-n", hub, "link", "add", f"port{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", hub, "link", "set", f"port{n}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"10.213.7.{n + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
