"""An S3 server for the suite, on a free loopback port, spoken to over HTTP.

It is moto in a process of its own, or with TEST_S3=ceph in the environment that of `tests/ceph.py`.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ceph import running_ceph
from tests.proxy import Proxy, running_proxy

BUCKET = "hashfleet-test"


def serve() -> None:
    """Run the server until standard input ends, which it does when the suite's process is gone."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        # moto looks, then stores: two writers could both find nothing. A real store does it in one step.
        conditional = "HTTP_IF_NONE_MATCH" in environ and environ["REQUEST_METHOD"] == "PUT"
        with one_at_a_time if conditional else contextlib.nullcontext():
            return moto(environ, start_response)

    class Quiet(MotoRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, True, request_handler=Quiet)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start a server with one empty bucket and yield its endpoint; end it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().decode().strip()
        assert port, f"the S3 server ended with code {process.wait()} before it answered"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def s3_environment(
    endpoint: str, access_key: str = "AKIAOFTHESUITE", secret_key: str = "the-secret-of-the-suite"
) -> dict[str, str]:
    """Return the environment in which every S3 client of this process and its children meets `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def is_ceph() -> bool:
    """Tell whether the suite runs against Ceph.

    Raises:
        ValueError: TEST_S3 names neither it nor moto.
    """
    name = os.environ.get("TEST_S3", "moto")
    if name not in ("moto", "ceph"):
        raise ValueError(f"TEST_S3 must be moto or ceph, got {name!r}")
    return name == "ceph"


@contextlib.contextmanager
def chosen_server() -> Iterator[dict[str, str]]:
    """Start the server that TEST_S3 names, with one empty bucket; yield the environment that meets it.

    The variables AWS_* of this process and its children are that environment's until it ends.
    """
    with contextlib.ExitStack() as running:
        if is_ceph():
            store = running.enter_context(running_ceph())
            told = s3_environment(store.endpoint, store.access_key, store.secret_key)
        else:
            told = s3_environment(running.enter_context(running_server()))
        patch = running.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in told.items():
            patch.setenv(name, value)
        make_bucket(told["AWS_ENDPOINT_URL"])
        yield told


def make_bucket(endpoint: str, name: str = BUCKET) -> None:
    """Create an empty bucket."""
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)


def s3_endpoint() -> str:
    """Return the endpoint that `s3_server` has put into the environment."""
    return os.environ["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield `s3://hashfleet-test`, an empty bucket of a real server; AWS_* point to it for the session."""
    with chosen_server():
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[Proxy]:
    """A proxy before the server of the session. Who wants it sets AWS_ENDPOINT_URL, and `forget`s first."""
    with running_proxy(s3_endpoint()) as proxy:
        yield proxy


if __name__ == "__main__":
    serve()
