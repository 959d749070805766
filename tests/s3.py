"""An S3 server for the suite: moto in a process of its own, on a free loopback port, spoken to over HTTP."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the environment in which every S3 client of this process and its children meets `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "hashfleet-tests",
        "AWS_SECRET_ACCESS_KEY": "hashfleet-tests-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


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
    with running_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        make_bucket(endpoint)
        yield f"s3://{BUCKET}"


if __name__ == "__main__":
    serve()
