"""A real Slurm on hosts of its own: a controller and one daemon for each node, on network namespaces.

Every node has its own address, name and process numbers: what a job starts or ends there is its own.
Everything lies in a temporary folder, in processes that are ended by their ids. The packages are those of
Debian: see PACKAGES.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.nodes import hosts, why_no_namespaces
from tests.processes import keep, let_go, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "srun", "unshare")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SECONDS = 60
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

_CONFIG = {
    "AccountingStorageType": "accounting_storage/none",
    "AuthType": "auth/munge",
    "ClusterName": "tests",
    "GresTypes": "gpu",
    "JobAcctGatherType": "jobacct_gather/none",
    "KillWait": "5",
    "MpiDefault": "none",
    "ProctrackType": "proctrack/linuxproc",
    "ReturnToService": "2",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SlurmUser": "root",
    "SlurmdParameters": "config_overrides",  # as many CPUs as are said, not as many as there are
    "SwitchType": "switch/none",
    "TaskPlugin": "task/none",
}


def why_no_slurm() -> str:
    """Say why this machine cannot run Slurm for the tests; empty when it can."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return (
            f"{', '.join(missing)} not found: apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
        )
    if os.geteuid():
        return "its daemons need root"
    return f"no network namespaces: {why}" if (why := why_no_namespaces()) else ""


@dataclass
class Slurm:
    """A controller on the first of some nodes."""

    folder: Path
    spaces: list[str]  # network namespaces, one a node
    cpus: int  # of each node
    gpus: int  # of each node, in the books alone: there is no such device
    keepers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start the services, and return when every node waits for work."""
        for name in ("state", "home", *self.names):
            (self.folder / name / "ray").mkdir(parents=True)
        self._configure()
        munge = (f"--key-file={self._at('key')}", f"--socket={self._at('munge')}", "--force")
        files = [f"--{name}-file={self._at(f'munged.{name}')}" for name in ("pid", "seed", "log")]
        self._serve("munged", "munged", "--foreground", *munge, *files)
        wait_until((self.folder / "munge").exists, what="munged", seconds=SECONDS)
        self._serve_apart("slurmctld", 0)
        for number in range(len(self.names)):
            self._serve_apart("slurmd", number)
        try:
            wait_until(self._ready, what=f"{len(self.spaces)} nodes of Slurm", seconds=SECONDS)
        except TimeoutError as error:
            logs = [f"{file.name}: {file.read_text()[-500:]}" for file in sorted(self.folder.glob("*.err"))]
            raise TimeoutError("\n".join([str(error), *logs])) from error

    def command(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a command on the first node, as a user there would, and return what it said."""
        done = subprocess.run(
            [*self._on(0), *words],
            cwd=cwd,
            env=self.environment | environment,
            timeout=SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[:3])}: {done.stderr.strip()}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        shown = self.command("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [f"node{number + 1}" for number in range(len(self.spaces))]

    @property
    def nodes(self) -> list[int]:
        """The processes below which everything on a node runs, as this host numbers them."""
        return [keeper.pid for keeper in self.keepers[-len(self.spaces) :]]

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this Slurm has in the environment."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        return ours | {"SLURM_CONF": self._at("slurm.conf"), "HOME": self._at("home")}

    def close(self) -> None:
        """End every service and what it started."""
        let_go(*self.keepers)

    def _configure(self) -> None:
        (self.folder / "key").write_bytes(secrets.token_bytes(128))
        (self.folder / "key").chmod(0o400)
        addresses = [f"10.213.7.{number + 1}" for number in range(len(self.spaces))]
        named = list(zip(self.names, addresses, strict=True))
        self._write("hosts", [f"{address} {name}" for name, address in [("localhost", "127.0.0.1"), *named]])
        settings = _CONFIG | {
            "AuthInfo": f"socket={self._at('munge')}",
            "SlurmctldHost": f"{named[0][0]}({named[0][1]})",
            "SlurmctldLogFile": self._at("slurmctld.log"),
            "SlurmctldPidFile": self._at("slurmctld.pid"),
            "SlurmdLogFile": self._at("slurmd.%n.log"),
            "SlurmdPidFile": self._at("slurmd.%n.pid"),
            "SlurmdSpoolDir": self._at("%n"),
            "StateSaveLocation": self._at("state"),
        }
        self._write(
            "cgroup.conf", ["CgroupPlugin=cgroup/v1"]
        )  # said, so that none is looked for: none is used
        has = f"CPUs={self.cpus} Gres=gpu:{self.gpus}"
        nodes = [f"NodeName={name} NodeAddr={address} {has}" for name, address in named]
        devices = [self._at(f"gpu{number}") for number in range(self.gpus)]
        for device in devices:
            Path(device).touch()
        self._write("gres.conf", [f"Name=gpu File={device}" for device in devices])
        told = [f"{name}={value}" for name, value in settings.items()]
        self._write("slurm.conf", [*told, *nodes, "PartitionName=all Nodes=ALL Default=YES MaxTime=60"])

    def _write(self, name: str, lines: list[str]) -> None:
        (self.folder / name).write_text("\n".join([*lines, ""]))

    def _ready(self) -> bool:
        try:
            states = self.command("sinfo", "--noheader", "--Node", "--format=%T").split()
        except RuntimeError:
            return False  # the controller does not answer yet
        return states == ["idle"] * len(self.spaces)

    def _serve_apart(self, program: str, number: int) -> None:
        """Start a daemon that sees a host of its own: its name, all names, its processes, Ray's folder."""
        name = self.names[number]
        setting = f"hostname {name}; mount --bind hosts /etc/hosts; mount --bind {name}/ray /tmp/ray"
        apart = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        # The shell stays as the first process there, and collects those that nobody waits for.
        told = ("sh", "-ec", f"cd {self.folder}; {setting}; {program} -D; exit")
        self._serve(f"{program}-{name}", *apart, *told, inside=self._on(number))

    def _serve(self, name: str, *command: str, inside: list[str] | None = None) -> None:
        log = self.folder / f"{name}.err"
        self.keepers.append(keep(command, environment=self.environment, log=log, inside=inside or []))

    def _on(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self.spaces[number]]

    def _at(self, name: str) -> str:
        return str(self.folder / name)


@contextlib.contextmanager
def running_slurm(*, nodes: int, cpus: int, gpus: int) -> Iterator[Slurm]:
    """Start a Slurm in a temporary folder and yield it; end its processes and remove the folder afterwards.

    Raises:
        RuntimeError: a service ended too early.
        TimeoutError: one does not answer.
    """
    Path("/tmp/ray").mkdir(exist_ok=True)  # each node has its own there; Ray's sockets need a short path
    with tempfile.TemporaryDirectory(prefix="hf-slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # munged wants its socket to be within everybody's reach
        with hosts(nodes) as spaces:
            found = Slurm(Path(folder), spaces, cpus, gpus)
            try:
                found.start()
                yield found
            finally:
                found.close()
