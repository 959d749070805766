"""A prefix of an S3 bucket as storage, through s3fs: single requests, no listing cache, plain errors.

Conditional writes are always one PUT with `If-None-Match: *`: some stores ignore the condition when a
multipart upload is completed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
from botocore.exceptions import (
    BotoCoreError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from s3fs.utils import FileExpired

from pipeline.releases.storage.backend import SourceFile
from pipeline.releases.storage.requests import AT_ONCE, BLOCK, Handler, connection, put_in_parts
from pipeline.releases.storage.retries import error_code

_MULTIPART_FROM = 64 << 20
_MOST_PARTS = 10_000  # of a multipart upload


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
            return bytes(connection().cat_file(self._name(path), max_concurrency=1))

    def write(self, path: str, data: bytes) -> None:
        with self._plain_errors(path):
            if len(data) < _MULTIPART_FROM:
                self._call("put_object", Key=self._key(path), Body=data)
            else:
                put_in_parts(lambda: connection().pipe_file(self._name(path), data, **_parts(len(data))))

    def create(self, path: str, data: bytes) -> bool:
        with self._plain_errors(path):
            return bool(connection().create_once(self.bucket, self._key(path), data))

    def stat(self, path: str) -> SourceFile:
        with self._plain_errors(path):
            answer = self._call("head_object", Key=self._key(path))
        if "ETag" not in answer:
            raise OSError(f"{self.uri}: what answers is no S3 store, it gave no ETag; check AWS_ENDPOINT_URL")
        return _file(path, answer["ContentLength"], answer)

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
                    yield _file(path, item["Size"], item)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, path: str) -> None:
        with self._plain_errors(path):
            self._call("delete_object", Key=self._key(path))

    def upload(self, file: Path, path: str) -> None:
        size = file.stat().st_size
        with self._plain_errors(path):
            put_in_parts(lambda: connection().put_file(str(file), self._name(path), **_parts(size)))

    def download(self, path: str, file: Path) -> None:
        with self._plain_errors(path):
            connection().fetch(self.bucket, self._key(path), file)

    def local(self, path: str) -> Path | None:
        return None

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.PyFileSystem(Handler(connection())), f"{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, path: str) -> str:
        return "/".join(step for step in (self.prefix, path) if step)

    def _name(self, path: str) -> str:
        return f"{self.bucket}/{self._key(path)}"

    def _call(self, method: str, **request: Any) -> Any:
        return connection().call_s3(method, Bucket=self.bucket, **request)

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
        except (BotoCoreError, ResponseParserError) as error:
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


def _file(path: str, size: int, answer: dict[str, Any]) -> SourceFile:
    modified = answer["LastModified"].timestamp() if "LastModified" in answer else 0.0
    return SourceFile(path, size, answer["ETag"].strip('"'), modified)


def _parts(size: int) -> dict[str, int]:
    """Return how an object of so many bytes is cut for its upload."""
    return {"chunksize": max(BLOCK, -(-size // _MOST_PARTS)), "max_concurrency": AT_ONCE}


def _plain(error: OSError, where: str, bucket: str) -> OSError:
    code = error_code(error)
    if isinstance(error, FileExpired):
        return OSError(f"{where} was replaced while it was read; run again")
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
