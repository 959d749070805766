"""A real object store on loopback: Ceph's gateway with one monitor and one memory-backed store below it.

Everything lies in a temporary folder, on free ports, in processes that are ended by their ids. The packages
are those of Debian: see PACKAGES.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.processes import free_port

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
SECONDS = 90

_CONFIG = {
    "auth allow insecure global id reclaim": "false",
    "cluster addr": "127.0.0.1",
    "mon allow pool size one": "true",
    "mon initial members": "a",
    "mon max pg per osd": "1000",
    "osd crush chooseleaf type": "0",
    "osd objectstore": "memstore",
    "osd pool default min size": "1",
    "osd pool default pg autoscale mode": "off",
    "osd pool default pg num": "1",
    "osd pool default pgp num": "1",
    "osd pool default size": "1",
    "public addr": "127.0.0.1",
}
_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}


@dataclass(frozen=True)
class Gateway:
    """Where the store answers, and who may ask."""

    endpoint: str
    access_key: str
    secret_key: str


def missing_programs() -> list[str]:
    """Return the programs of Ceph that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def running_ceph() -> Iterator[Gateway]:
    """Start a store in a temporary folder and yield it; end its processes and remove the folder afterwards.

    Raises:
        RuntimeError: a program is missing, ends too early, or does not answer in time.
    """
    if missing := missing_programs():
        raise RuntimeError(
            f"Ceph is not installed ({', '.join(missing)}); apt-get install -y --no-install-recommends"
            f" {' '.join(PACKAGES)}"
        )
    with tempfile.TemporaryDirectory(prefix="hashfleet-ceph-") as folder, contextlib.ExitStack() as running:
        yield _Store(Path(folder), running).start()


class _Store:
    """The steps of a start, each in the folder of the store."""

    def __init__(self, folder: Path, running: contextlib.ExitStack) -> None:
        self.folder = folder
        self.running = running
        self.environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}
        self.monitor, self.gateway = free_port(), free_port()

    def start(self) -> Gateway:
        """Bring up monitor, store and gateway, one after another."""
        for name in ("mon", "osd0", "run", "log"):
            (self.folder / name).mkdir()
        self._configure()
        self._add_keys()
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{self.monitor}]", self._at("map"))
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", self._at("map"), "--keyring", self._at("keys"))
        self._serve("ceph-mon", "-f", "-i", "a")
        self._run("ceph", "auth", "import", "-i", self._at("keys"))
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "create", identity)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._serve("ceph-osd", "-f", "-i", "0")
        gateway = self._serve("radosgw", "-f", "-n", "client.rgw")
        access, secret = secrets.token_hex(10), secrets.token_hex(20)
        user = ("user", "create", "--uid=tests", "--display-name=tests")
        keys = (f"--access-key={access}", f"--secret-key={secret}")
        self._wait(gateway)
        self._run("radosgw-admin", "-n", "client.rgw", *user, *keys)
        return Gateway(f"http://127.0.0.1:{self.gateway}", access, secret)

    def _configure(self) -> None:
        settings = _CONFIG | {
            "admin socket": f"{self.folder}/run/$name.$pid.asok",
            "fsid": str(uuid.uuid4()),
            "keyring": self._at("keys"),
            "log file": f"{self.folder}/log/$name.log",
            "mon data": self._at("mon"),
            "mon host": f"v2:127.0.0.1:{self.monitor}/0",
            "osd data": f"{self.folder}/osd$id",
            "rgw data": self._at("rgw"),
            "rgw frontends": f"beast endpoint=127.0.0.1:{self.gateway} tcp_nodelay=1",
            "run dir": self._at("run"),
        }
        lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]
        (self.folder / "ceph.conf").write_text("\n".join(lines))

    def _add_keys(self) -> None:
        for name, may in _CAPABILITIES.items():
            create = [] if (self.folder / "keys").exists() else ["--create-keyring"]
            rights = [word for service, right in may.items() for word in ("--cap", service, right)]
            self._run("ceph-authtool", *create, self._at("keys"), "--gen-key", "-n", name, *rights)

    def _at(self, name: str) -> str:
        return str(self.folder / name)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self.environment, timeout=SECONDS, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"{' '.join(command[:3])} ended with code {done.returncode}: {last}")

    def _serve(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a server that ends with this context, and in any case soon."""
        with (self.folder / "log" / f"{command[0]}.err").open("wb") as errors:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        self.running.callback(_end, process)
        return process

    def _wait(self, gateway: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if gateway.poll() is not None:
                raise RuntimeError(f"radosgw ended with code {gateway.returncode}; see {self.folder}/log")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}/", timeout=1).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the gateway of Ceph did not answer within {SECONDS} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()  # what it holds is in memory and not wanted any more
        process.wait()
