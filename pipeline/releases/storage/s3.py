"""A prefix of an S3 bucket as storage, through s3fs: single requests, no listing cache, plain errors.

Conditional writes are always one PUT with `If-None-Match: *`: some stores ignore the condition when a
multipart upload is completed.
"""

import contextlib
import functools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from pipeline.releases.storage.backend import SourceFile

_MULTIPART_FROM = 64 << 20
_CONFLICT_TRIES = 6
_TRIES = {"mode": "standard", "total_max_attempts": 3}


class S3Backend:
    """Files below `s3://bucket/prefix`; the bucket must be there already."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise ValueError(
                "an s3:// uri must not hold credentials; give them by the environment chain of AWS"
                " (AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an instance role)"
            )
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise ValueError(f"an s3:// uri must be s3://bucket/prefix, got {uri!r}")
        self.prefix = prefix.strip("/")
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, path: str) -> bytes:
        with self._plain_errors(path):
            # One concurrent range means one GET and no HEAD before it.
            return _client().cat_file(f"{self.bucket}/{self._key(path)}", max_concurrency=1)

    def write(self, path: str, data: bytes) -> None:
        with self._plain_errors(path):
            if len(data) < _MULTIPART_FROM:
                self._call("put_object", Key=self._key(path), Body=data)
            else:
                _client().pipe_file(f"{self.bucket}/{self._key(path)}", data)

    def create(self, path: str, data: bytes) -> bool:
        with self._plain_errors(path):
            for attempt in range(_CONFLICT_TRIES):
                try:
                    self._call("put_object", Key=self._key(path), Body=data, IfNoneMatch="*")
                    return True
                except OSError as error:
                    if isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412"):
                        return False
                    # 409: another conditional write of this key is under way and may yet fail.
                    last = attempt == _CONFLICT_TRIES - 1
                    if _code(error) not in ("ConditionalRequestConflict", "409") or last:
                        raise
                    time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
        raise AssertionError("unreachable")

    def stat(self, path: str) -> SourceFile:
        with self._plain_errors(path):
            answer = self._call("head_object", Key=self._key(path))
        if "ETag" not in answer:
            raise OSError(f"{self.uri}: what answers is no S3 store, it gave no ETag; check AWS_ENDPOINT_URL")
        return SourceFile(path=path, size=answer["ContentLength"], token=answer["ETag"].strip('"'))

    def files(self, prefix: str) -> Iterator[SourceFile]:
        folder = self._key(prefix)
        root = f"{self.prefix}/" if self.prefix else ""
        more: dict[str, str] = {}
        while True:
            with self._plain_errors(prefix):
                page = self._call("list_objects_v2", Prefix=f"{folder}/" if folder else "", **more)
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # a "folder" made by a console
                    path = item["Key"].removeprefix(root)
                    yield SourceFile(path=path, size=item["Size"], token=item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, path: str) -> None:
        with self._plain_errors(path):
            self._call("delete_object", Key=self._key(path))

    def upload(self, file: Path, path: str) -> None:
        with self._plain_errors(path):
            _client().put_file(str(file), f"{self.bucket}/{self._key(path)}")

    def download(self, path: str, file: Path) -> None:
        with self._plain_errors(path):
            _client().get_file(f"{self.bucket}/{self._key(path)}", str(file))

    def local(self, path: str) -> Path | None:
        return None

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        handler = pyarrow.fs.FSSpecHandler(_client())
        return pyarrow.fs.PyFileSystem(handler), f"{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, path: str) -> str:
        return "/".join(step for step in (self.prefix, path) if step)

    def _call(self, method: str, **request: Any) -> Any:
        return _client().call_s3(method, Bucket=self.bucket, **request)

    @contextlib.contextmanager
    def _plain_errors(self, path: str) -> Iterator[None]:
        """Say in one line what went wrong and where; an endpoint or a key is never part of it."""
        where = f"s3://{self.bucket}/{self._key(path)}".rstrip("/")
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise PermissionError(
                f"{where}: no AWS credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or run where an instance role gives them"
            ) from error
        except ParamValidationError as error:
            raise ValueError(f"{where}: {' '.join(str(error).split())}; correct the uri") from error
        except BotoCoreError as error:
            raise ConnectionError(
                f"{where}: the S3 endpoint cannot be used ({type(error).__name__});"
                " check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network"
            ) from None  # the cause's own text holds the endpoint
        except ValueError as error:
            if not str(error).startswith("Invalid endpoint"):
                raise
            raise ConnectionError(f"{where}: AWS_ENDPOINT_URL must be like https://host:port") from None
        except OSError as error:
            raise _plain(error, where, self.bucket) from error


def _plain(error: OSError, where: str, bucket: str) -> OSError:
    code = _code(error)
    if code == "NoSuchBucket":
        # Not a FileNotFoundError: whoever asks whether a file is there must not take this for a no.
        return OSError(f"{where}: there is no bucket {bucket!r}; create it or correct the uri")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{where}: no such file")
    if isinstance(error, PermissionError):
        return PermissionError(
            f"{where}: S3 refused access ({code}); check the credentials and the policy of bucket {bucket!r}"
        )
    if code:
        return OSError(f"{where}: S3 answered {code}")
    return OSError(f"{where}: {type(error).__name__} while talking to S3")


def _code(error: BaseException) -> str:
    """Return the error code of the S3 answer behind an error of s3fs, '' without one."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return str(cause.response["Error"].get("Code", "")) if isinstance(cause, ClientError) else ""


class _S3(s3fs.S3FileSystem):
    """s3fs that gives a silent endpoint up after a minute and a half: two times botocore's tries of 15 s.

    s3fs tries again what broke while a body was read, botocore what failed before.
    """

    retries = 2


def _client() -> s3fs.S3FileSystem:
    """Return this process's connection; a fork or another AWS environment means another one."""
    chain = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _connect(os.getpid(), chain)


@functools.lru_cache(maxsize=8)
def _connect(process: int, chain: tuple[tuple[str, str], ...]) -> s3fs.S3FileSystem:
    # Parquet readers ask for exact ranges: s3fs' readahead would fetch up to 50 MiB beyond each.
    settings = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": _TRIES}
    return _S3(
        use_listings_cache=False,
        default_cache_type="none",
        skip_instance_cache=True,
        config_kwargs=settings,
    )
