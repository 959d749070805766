"""Local folders as storage, down to the operating system: what errors name, what is durable, what is left."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, "-c", FILLED, tmp_path, verb]
    told, left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told.startswith(f"{reason}|{tmp_path}/{named}")
    assert left == "source"
