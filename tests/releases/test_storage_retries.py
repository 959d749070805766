"""What is asked again and what is not, through a proxy that disturbs; the same files at the end."""

import asyncio
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage, retries, storage_retries
from tests.proxy import KINDS, Fault, Kind, Proxy, Request, drawn, on


@pytest.fixture
def proxy(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The proxy before the S3 server, through which every client of the test goes."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint)
    s3_proxy.forget()
    return s3_proxy


@pytest.fixture
def storage(proxy: Proxy, s3_server: str, tmp_path: Path) -> Storage:
    return Storage(f"{s3_server}/{tmp_path.name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE"])
def test_a_single_fault_of_any_kind_is_not_felt(
    proxy: Proxy, storage: Storage, method: str, kind: Kind
) -> None:
    body = np.random.default_rng(0).bytes(200_000)
    storage.write("there", body)
    proxy.forget(on(method, "there", Fault(kind)))
    if method == "GET":
        assert storage.read("there") == body
    elif method == "PUT":
        storage.write("there", body[::-1])
    elif method == "HEAD":
        assert storage.size("there") == len(body)
    else:
        storage.delete("there")
    assert proxy.done == {kind: 1}
    assert len(proxy.seen) == (1 if kind == "dawdle" else 2)
    proxy.forget()
    assert storage.list() == ([] if method == "DELETE" else ["there"])
    if method != "DELETE":
        assert storage.read("there") == (body[::-1] if method == "PUT" else body)


@pytest.mark.parametrize("kind", ["lose", "break", "slow down", "refuse"])
def test_a_create_whose_answer_was_lost_knows_that_it_won(proxy: Proxy, storage: Storage, kind: Kind) -> None:
    proxy.plan = on("PUT", "mine", Fault(kind))
    assert storage.create("mine", b"of this writer")
    assert not storage.create("mine", b"of this writer")  # equal, but of another call
    assert storage.read("mine") == b"of this writer"


def test_a_create_that_lost_while_its_answer_was_lost_knows_that_too(
    proxy: Proxy, storage: Storage, s3_server: str
) -> None:
    other = Storage(storage.uri)

    def take(request: Request) -> None:
        assert other.create("race", b"of the other one")

    proxy.plan = on("PUT", "race", Fault("refuse", before=take))
    assert not storage.create("race", b"of this writer!!")
    assert storage.read("race") == b"of the other one"


def test_the_log_is_dense_and_has_one_winner_when_every_answer_may_be_lost(
    proxy: Proxy, storage: Storage
) -> None:
    proxy.plan = drawn(3, rate=0.5, kinds=("lose", "break", "slow down"), most=2)
    taken: list[int] = []

    def work(writer: int) -> None:
        log = Log(Storage(storage.uri))
        for _ in range(3):
            if (lease := log.acquire(f"writer {writer}", 60)) is not None:
                taken.append(lease.fence)
                log.release(lease)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.plan = None
    history = Log(storage).history()
    assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
    assert sorted(taken) == [entry.seq for entry in history if entry.kind == "acquire"]


def test_requests_made_again_are_counted_by_reason(proxy: Proxy, storage: Storage) -> None:
    before, known = storage_retries(), retries.counted()
    proxy.plan = on("PUT", "x", Fault("slow down"), times=range(1, 4))
    storage.write("x", b"")
    assert storage_retries() == before + 3
    assert retries.counted()["SlowDown"] == known.get("SlowDown", 0) + 3


def test_what_does_not_pass_is_told_at_once(proxy: Proxy, storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("gone")
    assert len(proxy.seen) == 1


def test_tries_are_bounded_by_number_and_by_time(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.02)
    proxy.plan = on("GET", "x", Fault("slow down"), times=range(1, 1000))
    with pytest.raises(OSError, match="S3 answered SlowDown"):
        storage.read("x")
    assert len(proxy.seen) == retries.TRIES
    proxy.forget(proxy.plan)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with pytest.raises(OSError, match="S3 answered SlowDown"):
        storage.read("x")
    assert len(proxy.seen) == 3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1000")
    monkeypatch.setattr(retries, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(OSError, match="S3 answered SlowDown"):
        storage.read("x")
    assert time.monotonic() - started < 5
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(ValueError, match="AWS_MAX_ATTEMPTS must be a whole number from 1, got 'many'"):
        storage.read("x")


def test_a_store_that_is_away_for_long_is_told_of_once_and_asked_on(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retries, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.2)
    storage.write("x", b"here")
    away = 0.5 + time.monotonic()
    proxy.forget(lambda _: Fault("refuse") if time.monotonic() < away else None)
    assert storage.read("x") == b"here"
    told = [
        record.message for record in caplog.records if "object storage has not answered" in record.message
    ]
    assert 1 <= len(told) < proxy.done["refuse"]
    assert "\n" not in told[0]


def test_waits_are_drawn_below_a_bound_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def draw(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return 0.0

    async def ask() -> None:
        raise ClientError({"Error": {"Code": "SlowDown"}}, "GetObject")

    monkeypatch.setattr(retries.random, "uniform", draw)
    with pytest.raises(ClientError):
        asyncio.run(retries.retried(ask))
    assert bounds == [min(20.0, 0.25 * 2**n) for n in range(retries.TRIES)]


@pytest.mark.parametrize("kind", ["break", "cut", "slow down", "refuse"])
def test_ranges_that_arrow_reads_are_asked_again(
    proxy: Proxy, storage: Storage, tmp_path: Path, kind: Kind
) -> None:
    table = pa.table({"row": np.arange(20_000), "noise": np.random.default_rng(1).random(20_000)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5_000)
    storage.upload(tmp_path / "t.parquet", "t.parquet")
    filesystem, root = pickle.loads(pickle.dumps(storage.filesystem()))
    proxy.forget(drawn(5, rate=1.0, kinds=(kind,), most=1))
    with filesystem.open_input_file(f"{root}/t.parquet") as stream:
        assert pq.ParquetFile(stream).read_row_group(2) == table.slice(10_000, 5_000)
    assert proxy.done[kind] >= 1
    assert sum(line.startswith("HEAD") for line in proxy.seen) <= 2  # once, and once again


def test_an_upload_in_parts_survives_the_loss_of_any_answer(
    proxy: Proxy, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.releases.storage.s3.BLOCK", 5 << 20)
    monkeypatch.setattr("pipeline.releases.storage.requests.BLOCK", 5 << 20)
    data = np.random.default_rng(2).bytes((11 << 20) + 7)
    (tmp_path / "big").write_bytes(data)
    kinds: tuple[Kind, ...] = ("lose", "break")
    for kind in kinds:
        proxy.forget(drawn(7, rate=1.0, kinds=(kind,), most=1))
        storage.upload(tmp_path / "big", f"big {kind}")
        assert any("uploadId" in line for line in proxy.seen)
        storage.download(f"big {kind}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data


def test_a_file_replaced_while_it_is_downloaded_is_said(
    proxy: Proxy, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.releases.storage.requests.BLOCK", 1000)
    storage.write("big", b"1" * 10_000)
    other = Storage(storage.uri)

    def replace(request: Request) -> None:
        other.write("big", b"2" * 10_000)

    proxy.forget(on("GET", "big", Fault(after=replace)))
    with pytest.raises(OSError, match="big was replaced while it was read; run again"):
        storage.download("big", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_body_that_trickles_is_asked_again(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.releases.storage.requests.PATIENCE", 0.2)
    monkeypatch.setattr("pipeline.releases.storage.requests.SLOWEST", 1 << 30)
    storage.write("slow", b"x" * 100_000)
    proxy.forget(on("GET", "slow", Fault("dawdle", seconds=5)))
    before = retries.counted().get("TimeoutError", 0)
    assert storage.read("slow") == b"x" * 100_000
    assert retries.counted()["TimeoutError"] == before + 1


def test_a_listing_of_pages_under_faults_is_whole(proxy: Proxy, storage: Storage) -> None:
    for number in range(5):
        storage.write(f"many/{number}", b"")
    proxy.forget(drawn(11, rate=1.0, kinds=("cut",), most=2))
    assert storage.list("many") == [f"many/{number}" for number in range(5)]
    assert len(proxy.seen) == 3
