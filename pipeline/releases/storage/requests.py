"""s3fs as this room uses it: every request goes through the one place for retries, and bodies with it.

s3fs reads a body after its own retries are over, and a part of what it offers tries again on top of what
botocore has tried. Here a request is over when its body is here, whole; a file that Arrow reads range by
range comes the same way.
"""

import asyncio
import functools
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.fs
import s3fs
from botocore.exceptions import IncompleteReadError, ResponseStreamingError
from fsspec.asyn import sync_wrapper
from s3fs.utils import FileExpired

from pipeline.releases.storage.retries import error_code, retried

BLOCK = 16 << 20
"""Bytes of one request for a part of a large file, either way."""
AT_ONCE = 4
"""Requests of that kind under way at a time."""
PATIENCE, SLOWEST = 30.0, 64 << 10
"""A body has so many seconds, and one more for each `SLOWEST` bytes: one that trickles is asked for again."""

_MARK = "hashfleet-try"  # user metadata
_STANDS = ("PreconditionFailed", "412")
_ONCE = {"mode": "standard", "total_max_attempts": 1}


class S3(s3fs.S3FileSystem):
    """One connection to S3. Its pickle says only that it is one: all else is found where it is opened."""

    retries = 1  # of s3fs itself: none of its own

    def __reduce__(self) -> tuple[Callable[[], "S3"], tuple[()]]:
        return connection, ()

    async def _call_s3(self, method: str, *arguments: Any, **request: Any) -> Any:
        return await retried(lambda: self._once(method, *arguments, **request))

    call_s3 = sync_wrapper(_call_s3)

    async def _once(self, method: str, *arguments: Any, **request: Any) -> Any:
        try:
            answer = await super()._call_s3(method, *arguments, **request)
            if method == "get_object":
                answer["Body"] = _Whole(await _body(answer))
        except aiohttp.ClientError as error:  # what botocore has no name for: an answer without its end
            raise ResponseStreamingError(error=error) from error
        return answer

    async def _create_once(self, bucket: str, key: str, data: bytes) -> bool:
        """Put an object if there is none; one PUT, since some stores forget the condition of a multipart one.

        Where an answer was lost, the next try finds the object of the one before: a mark tells them apart.
        That is asked after every refusal, for aiohttp sends a PUT again without a word when a connection that
        it has kept turns out to be closed.
        """
        mark = secrets.token_hex(16)
        try:
            await self._call_s3(
                "put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_MARK: mark}
            )
            return True
        except OSError as error:
            if not isinstance(error, FileExistsError) and error_code(error) not in _STANDS:
                raise
        try:
            standing = await self._call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:  # deleted meanwhile: it was there
            return False
        return bool(standing.get("Metadata", {}).get(_MARK) == mark)

    create_once = sync_wrapper(_create_once)

    async def _fetch(self, bucket: str, key: str, file: Path) -> None:
        """Copy an object of any size into a local file, a few blocks at a time; a small one is one request.

        Raises:
            FileExpired: it was replaced meanwhile.
        """
        whole = {"Bucket": bucket, "Key": key}
        try:
            answer = await self._call_s3("get_object", **whole, Range=f"bytes=0-{BLOCK - 1}")
        except OSError as error:
            if error_code(error) != "InvalidRange":  # an empty object has no first byte
                raise
            answer = await self._call_s3("get_object", **whole)
        size = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        etag = answer.get("ETag")

        async def block(start: int) -> bytes:
            last = min(start + BLOCK, size) - 1
            found = await self._call_s3("get_object", **whole, Range=f"bytes={start}-{last}")
            if found.get("ETag") != etag:
                raise FileExpired(filename=f"{bucket}/{key}", e_tag=etag)
            return bytes(await found["Body"].read())

        starts = range(BLOCK, size, BLOCK)
        with file.open("wb") as stream:
            stream.write(await answer["Body"].read())
            for first in range(0, len(starts), AT_ONCE):
                for data in await asyncio.gather(*map(block, starts[first : first + AT_ONCE])):
                    stream.write(data)

    fetch = sync_wrapper(_fetch)


class Handler(pyarrow.fs.FSSpecHandler):
    """Arrow's way to s3fs, with one request to open a file where Arrow's own makes two."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    open_input_stream = open_input_file


def connection() -> S3:
    """Return this process's connection; a fork or another AWS environment means another one."""
    chain = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _connect(os.getpid(), chain)


@functools.lru_cache(maxsize=8)
def _connect(process: int, chain: tuple[tuple[str, str], ...]) -> S3:
    return S3(
        use_listings_cache=False,
        default_cache_type="none",  # Parquet readers ask for exact ranges: readahead would be thrown away
        skip_instance_cache=True,
        config_kwargs={"retries": _ONCE},
    )


def put_in_parts(put: Callable[[], None]) -> None:
    """Run an upload that may take several requests, again where the answer to the last one was lost.

    The upload is then complete and no longer known: that it is the wanted one is certain only when made anew.
    """
    try:
        put()
    except OSError as error:
        if error_code(error) != "NoSuchUpload":
            raise
        put()


async def _body(answer: dict[str, Any]) -> bytes:
    """Return the body of an answer, or raise what may pass when it is not whole in time."""
    body, expected = answer["Body"], int(answer["ContentLength"])
    try:
        reading: Awaitable[bytes] = body.read()
        data = await asyncio.wait_for(reading, PATIENCE + expected / SLOWEST)
    finally:
        body.close()
    if len(data) != expected:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
    return data


class _Whole:
    """A body that is here already, read the way s3fs reads one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    async def read(self, amount: int = -1) -> bytes:
        """Return the next bytes, all that are left by default."""
        start = self._at
        self._at = len(self._data) if amount < 0 else min(start + amount, len(self._data))
        return self._data[start : self._at]

    def close(self) -> None:
        """Let go of what was not read."""
        self._data, self._at = b"", 0
