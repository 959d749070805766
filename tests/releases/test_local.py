"""Local folders as storage, down to the operating system: what errors name, what is durable, what is left."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.releases.collecting import sweep
from pipeline.releases.storage import Storage

FILLED = """
import resource, sys
from pathlib import Path
from pipeline.releases.storage import Storage
storage, verb = Storage(sys.argv[1]), sys.argv[2]
source = Path(sys.argv[1], "source")
source.write_bytes(bytes(100_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
steps = {
    "write": lambda: storage.write("codes/a", bytes(100_000)),
    "create": lambda: storage.create("codes/a", bytes(100_000)),
    "upload": lambda: storage.upload(source, "codes/a"),
    "download": lambda: storage.download("source", Path(sys.argv[1], "copy/a")),
    "upload of nothing": lambda: storage.upload(Path(sys.argv[1], "none"), "codes/a"),
}
try:
    steps[verb]()
except OSError as error:
    print(error.strerror, error.filename, sep="|")
    print(*(path.name for path in Path(sys.argv[1]).rglob("*") if path.is_file()))
"""


@pytest.mark.parametrize(
    ("verb", "reason", "named"),
    [
        ("write", "File too large", "codes/a"),
        ("create", "File too large", "codes/a"),
        ("upload", "File too large", "codes/a"),
        ("download", "File too large", "copy/.tmp-"),
        ("upload of nothing", "No such file or directory", "none"),
    ],
)
def test_a_file_that_finds_no_room_is_named_and_leaves_nothing(
    tmp_path: Path, verb: str, reason: str, named: str
) -> None:
    """A limit on the size of files stands for a full disk: the kernel refuses the same calls."""
    command = [sys.executable, "-c", FILLED, str(tmp_path), verb]
    told, left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told.startswith(f"{reason}|{tmp_path}/{named}")
    assert left == "source"


def test_a_folder_goes_with_its_last_file_and_the_root_never(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store")
    for path in ("runs/step-1/model/a", "runs/step-1/b", "runs/step-2/a"):
        storage.write(path, b"x")
    storage.delete("runs/step-1/model/a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "b",
        "runs",
        "step-1",
        "step-2",
        "store",
    ]
    storage.delete("runs/step-1/b")
    assert not (tmp_path / "store" / "runs" / "step-1").exists()
    storage.delete("runs/step-2/a")
    storage.delete("runs/step-2/a")
    assert [path.name for path in tmp_path.rglob("*")] == ["store"]
    storage.write("a", b"x")
    storage.delete("a")
    assert storage.create("runs/step-1/b", b"y")


@pytest.mark.parametrize("verb", ["write", "create"])
def test_writers_lose_no_file_to_the_removal_of_their_folder(tmp_path: Path, verb: str) -> None:
    """Each removes its own file in turn, so the folder goes and comes while the others write into it."""
    faults = list[Exception]()

    def work(name: str) -> None:
        storage = Storage(tmp_path)
        try:
            for number in range(60):
                path = f"runs/step/{name}"
                getattr(storage, verb)(path, f"{number}".encode())
                assert storage.read(path) == f"{number}".encode()
                storage.delete(path)
        except Exception as error:
            faults.append(error)

    workers = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults
    assert list(tmp_path.iterdir()) == []


class Calls:
    """The calls to the operating system that change a folder or sync something, in order, as they succeed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.made = root, list[tuple[str, str]]()
        for name in ("mkdir", "rmdir", "unlink", "replace", "link"):
            monkeypatch.setattr(os, name, self._noting(name, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._noting("fsync", os.fsync))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any, **options: Any) -> Any:
            answer = call(*arguments, **options)
            if name == "fsync":
                path = Path(f"/proc/self/fd/{arguments[0]}").readlink()
                size = os.fstat(arguments[0]).st_size
                self.made.append((name, self._named(path) if path.is_dir() else f"{size} bytes"))
            else:
                target = arguments[1] if name in ("replace", "link") else arguments[0]
                self.made.append((name, self._named(Path(target))))
            return answer

        return noting

    def _named(self, path: Path) -> str:
        return ".tmp" if path.name.startswith(".tmp-") else path.relative_to(self.root).as_posix()

    def taken(self) -> list[tuple[str, str]]:
        """Return the calls since the last time."""
        made, self.made = self.made, []
        return made


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(tmp_path, monkeypatch)


def test_a_new_file_its_name_and_its_new_folders_are_synced_before_it_is_said_to_stand(
    tmp_path: Path, calls: Calls
) -> None:
    storage = Storage(tmp_path / "store")
    assert storage.create("heads/new/1.json", b"first entry")
    assert calls.taken() == [
        ("mkdir", "store"),
        ("fsync", "."),
        ("mkdir", "store/heads"),
        ("fsync", "store"),
        ("mkdir", "store/heads/new"),
        ("fsync", "store/heads"),
        ("fsync", "11 bytes"),
        ("link", "store/heads/new/1.json"),
        ("unlink", ".tmp"),
        ("fsync", "store/heads/new"),
    ]
    placed = [("fsync", "3 bytes"), ("replace", "store/heads/new/2.json"), ("fsync", "store/heads/new")]
    storage.write("heads/new/2.json", b"abc")
    assert calls.taken() == placed
    (tmp_path / "source").write_bytes(b"abc")
    storage.upload(tmp_path / "source", "heads/new/2.json")
    assert calls.taken() == placed


def test_a_manifest_is_gone_for_good_before_what_it_names_goes(tmp_path: Path, calls: Calls) -> None:
    storage = Storage(tmp_path)
    gone = ("releases/a.json", "parts/a.faiss", "parts/a.keys.arrow")
    for path in (*gone, "releases/b.json", "parts/b.faiss"):
        storage.write(path, b"x")
    calls.taken()
    sweep(storage, [storage.stat(path) for path in gone], undisturbed=lambda: True)
    steps = [(("unlink", path), ("fsync", path.split("/")[0])) for path in gone]
    assert calls.taken() == [call for step in steps for call in step]
