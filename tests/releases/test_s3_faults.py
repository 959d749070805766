"""What object storage can do to us, each said in one line, soon enough, without a secret."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import s3fs

from pipeline.releases.storage import Storage, list_source, retries
from tests.s3 import s3_environment


def test_a_missing_bucket_is_said(s3_server: str) -> None:
    with pytest.raises(OSError, match="no bucket 'hashfleet-none'; create it or correct the uri"):
        Storage("s3://hashfleet-none/x").write("a", b"")
    with pytest.raises(OSError, match="no bucket 'hashfleet-none'"):
        list_source("s3://hashfleet-none/x")


def test_missing_credentials_and_a_dead_endpoint_are_said_without_secrets(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(PermissionError, match="no AWS credentials found; set AWS_PROFILE"):
            Storage(s3_server).read("a")
    for name, value in s3_environment("http://user:hunter2@127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ConnectionError, match="the S3 endpoint cannot be used") as caught:
        Storage(s3_server).write("a", b"")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "hunter2")
    with pytest.raises(ConnectionError, match="AWS_ENDPOINT_URL must be like https://host:port") as caught:
        Storage(s3_server).write("a", b"")
    assert "hunter2" not in str(caught.value)


def test_an_unknown_profile_and_an_impossible_bucket_are_said_by_name(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r'Invalid bucket name "Not_A_Bucket!".*; correct the uri'):
        Storage("s3://Not_A_Bucket!/x").write("a", b"")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(PermissionError, match="no AWS credentials found; set AWS_PROFILE"):
        Storage(s3_server).read("a")


@contextlib.contextmanager
def endpoint(answer: bytes | None) -> Iterator[tuple[str, list[int]]]:
    """Listen on loopback; yield the URL, and a list that has an entry for every caller. None: say nothing."""
    callers: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as open_ones:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the test has ended
                while True:
                    caller, address = server.accept()
                    open_ones.enter_context(caller)
                    callers.append(address[1])
                    if answer is not None:
                        caller.recv(1 << 16)
                        caller.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", callers


def test_a_silent_endpoint_is_given_up_after_so_many_tries(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.05)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.02)
    with endpoint(None) as (url, callers):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ConnectionError, match=r"cannot be used \(ReadTimeoutError\)"):
            Storage(s3_server).exists("a")
        assert len(callers) == retries.TRIES


def test_what_answers_and_is_no_store_is_said(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(
            OSError, match="what answers is no S3 store, it gave no ETag; check AWS_ENDPOINT_URL"
        ):
            Storage(s3_server).exists("a")
