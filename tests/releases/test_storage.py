"""Storage: whole files, one winner, fresh answers, plain errors; the same body over both kinds."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.releases.storage import Storage, list_source, retries, source_root
from tests.proxy import drawn


@pytest.fixture(params=["local", "s3", pytest.param("failing", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder, a prefix of the session's bucket, or one behind a network that fails once in ten requests."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "failing":
        proxy = request.getfixturevalue("s3_proxy")
        proxy.forget(drawn(20, rate=0.1, most=2))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(retries, "FIRST_WAIT", 0.02)
    return f"{request.getfixturevalue('s3_server')}/{tmp_path.name}"


NAMES = ["a.parquet", "b c/ünïcode 名.parquet", "b c/x+y&z=%20.parquet", "deep/er/one.parquet"]


def test_what_was_written_is_read_and_replaced(storage: Storage) -> None:
    for name in NAMES:
        storage.write(name, name.encode())
        assert storage.read(name) == name.encode()
        assert storage.size(name) == len(name.encode())
        storage.write(name, b"new")
        assert storage.read(name) == b"new"
    assert storage.list() == sorted(NAMES)
    assert storage.list("b c") == sorted(name for name in NAMES if name.startswith("b c/"))
    assert storage.list("b") == []


def test_a_missing_file_is_said_with_its_full_name(storage: Storage) -> None:
    assert not storage.exists("gone.json")
    for ask in (storage.read, storage.size, storage.stat):
        with pytest.raises(FileNotFoundError, match=r"gone\.json"):
            ask("gone.json")
    storage.delete("gone.json")


def test_listing_shows_a_change_at_once(storage: Storage) -> None:
    for number in range(5):
        assert len(storage.list("codes")) == number
        storage.write(f"codes/{number}", b"x")
        assert storage.exists(f"codes/{number}")
    for number in range(5):
        storage.delete(f"codes/{number}")
        assert not storage.exists(f"codes/{number}")
    assert storage.list("codes") == []


def test_a_listing_of_more_than_one_page_is_whole(storage: Storage) -> None:
    count = 1003 if not storage.uri.startswith("s3://") else 1001
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: storage.write(f"many/{number:04d}", b""), range(count)))
    assert storage.list("many") == [f"many/{number:04d}" for number in range(count)]


def test_create_keeps_the_first_file(storage: Storage) -> None:
    assert storage.create("heads/main/1.json", b"first")
    assert not storage.create("heads/main/1.json", b"second")
    assert storage.read("heads/main/1.json") == b"first"
    assert storage.creates_once()
    assert storage.list() == ["heads/main/1.json"]


def test_a_race_of_threads_to_create_has_one_winner(root: str) -> None:
    for round_number in range(5):
        start = threading.Barrier(8)

        def race(writer: int, number: int = round_number, start: threading.Barrier = start) -> bool:
            storage = Storage(root)
            start.wait()
            return storage.create(f"race-{number}", f"writer {writer}".encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert won.count(True) == 1
        assert Storage(root).read(f"race-{round_number}") == f"writer {won.index(True)}".encode()


RACER = """
import sys
from pipeline.releases.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(sum(storage.create(f"race/{n:03d}", sys.argv[2].encode() + b"x" * 100_000) for n in range(20)))
"""


def test_a_race_of_processes_to_create_has_one_winner_per_name(root: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, root, str(writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = [int(racer.communicate("go\n")[0]) for racer in racers]
    assert sum(answers) == 20
    storage = Storage(root)
    assert {storage.size(name) for name in storage.list("race")} == {100_001}


WRITER = """
import sys
from pipeline.releases.storage import Storage
storage = Storage(sys.argv[1])
data = b"y" * (48 << 20)
print("ready", flush=True)
n = 0
while True:
    getattr(storage, sys.argv[2])(f"codes/{n % 2}", data)
    storage.delete(f"codes/{n % 2}")
    n += 1
"""


@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_writer_killed_in_mid_write_leaves_nothing_half_written(root: str, verb: str) -> None:
    storage = Storage(root)
    for delay in (0.03, 0.11, 0.23):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, root, verb], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=delay)  # somewhere inside a write: any place is a fair one
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert {storage.size(name) for name in storage.list()} <= {48 << 20}
    assert storage.create("codes/after", b"works")


def test_files_and_folders_travel_whole(storage: Storage, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    (model / "sub" / "weights").write_bytes(os.urandom(1 << 20))
    storage.upload_folder(model, "models/ab")
    for _ in range(2):  # the second finds the folder there and changes nothing
        storage.download_folder("models/ab", tmp_path / "copy")
    (model / "empty").write_bytes(b"")
    storage.upload(model / "empty", "empty")
    storage.download("empty", tmp_path / "copy" / "empty")
    for name in ("config.json", "sub/weights", "empty"):
        assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="models/none"):
        storage.download_folder("models/none", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="gone"):
        storage.download("gone", tmp_path / "gone")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["copy", "model"]


def test_arrow_reads_through_the_file_system_after_a_pickle(storage: Storage, tmp_path: Path) -> None:
    table = pa.table({"key": [f"k{n}" for n in range(1000)], "row": list(range(1000))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    storage.upload(tmp_path / "t.parquet", "data/t ü.parquet")
    assert pickle.loads(pickle.dumps(storage)) == storage
    filesystem, root = pickle.loads(pickle.dumps(storage.filesystem()))
    with filesystem.open_input_file(f"{root}/data/t ü.parquet") as stream:
        assert pq.ParquetFile(stream).read_row_group(3) == table.slice(300, 100)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a/", "nul\0", "\ud800"]
)
def test_a_path_that_could_leave_the_root_is_refused(storage: Storage, path: str) -> None:
    with pytest.raises(ValueError, match="path must be"):
        storage.read(path)
    with pytest.raises(ValueError, match="path must be"):
        storage.create(path, b"")


def test_a_source_is_listed_sorted_without_other_writers_marks(storage: Storage) -> None:
    for name in [*NAMES, "readme.txt", "_tmp/x.parquet", ".hidden.parquet", "deep/_SUCCESS"]:
        storage.write(name, b"1234")
    files = list_source(storage.uri)
    assert [file.path for file in files] == sorted(NAMES)
    assert source_root(storage.uri) == storage
    assert {file.size for file in files} == {4}
    assert files == [storage.stat(file.path) for file in files]
    assert files == list_source(storage.uri + "/")


def test_a_source_may_be_one_file(storage: Storage) -> None:
    storage.write("deep/er/one.parquet", b"1")
    uri = f"{storage.uri}/deep/er/one.parquet"
    root = source_root(uri)
    assert list_source(uri) == [root.stat("one.parquet")]
    assert root.read("one.parquet") == b"1"
    # A folder may be named like a file.
    assert [file.path for file in list_source(f"{storage.uri}/deep/er")] == ["one.parquet"]
    storage.write("spark.parquet/part-0.parquet", b"1")
    assert [file.path for file in list_source(f"{storage.uri}/spark.parquet")] == ["part-0.parquet"]


def test_a_source_that_is_not_there_is_said(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder; expected \.parquet"):
        list_source(f"{storage.uri}/nowhere")
    storage.write("notes/readme.txt", b"")
    assert list_source(f"{storage.uri}/notes") == []


def test_a_token_changes_with_the_file(storage: Storage) -> None:
    storage.write("a.parquet", b"1111")
    before = storage.stat("a.parquet")
    assert storage.stat("a.parquet") == before
    storage.write("a.parquet", b"2222")
    assert storage.stat("a.parquet").token != before.token


def test_a_local_file_that_goes_while_its_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in "abc":
        storage.write(f"folder/{name}", b"1")
    listing = storage.files()
    seen = next(listing).path
    for name in "abc":
        storage.delete(f"folder/{name}")
    assert seen in {"folder/a", "folder/b", "folder/c"}
    assert list(listing) == []


def test_local_files_of_one_size_and_time_have_their_own_tokens(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("a.parquet", "b.parquet"):
        storage.write(name, name.encode())
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    first, second = list_source(tmp_path)
    assert first.size == second.size
    assert first.token != second.token


def test_a_link_that_leads_back_up_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(b"1")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert [file.path for file in list_source(tmp_path)] == ["a/x.parquet", "b/x.parquet"]


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "https://host/x", "s3://", "s3:///x"])
def test_a_uri_of_no_known_kind_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        Storage(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="must not hold credentials") as caught:
        Storage("s3://AKIAKEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)
