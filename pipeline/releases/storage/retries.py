"""When a request to object storage is made again: the one place. botocore's and s3fs' own retries are off.

Made again is what passes by itself: throttling, faults inside the store, connections that break, answers that
do not come or end too soon. The wait before the next try is drawn evenly from nothing up to a bound that
doubles (full jitter), so that a thousand workers which were throttled together do not come back together.
Time bounds them: a store that is away for a minute costs a run that minute. Anything else (no such file, no
access, a wrong name) is told at once.
"""

import asyncio
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

TRIES = 24
"""Of one request, the first included; AWS_MAX_ATTEMPTS in the environment stands above it."""
SECONDS = 90.0
"""No try starts later than this after the first one."""
SILENT_SECONDS = 10.0
"""A request that is made again for longer is told of, by one line a process in as long a time."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
"""Seconds: upper bounds of the wait after the first try, and of any."""

_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_CODES = frozenset(
    {
        "ConditionalRequestConflict",  # another conditional write of this key is under way and may yet fail
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)

Answer = TypeVar("Answer")

_counted: Counter[str] = Counter()
_told = -SECONDS  # when, on the monotonic clock
_lock = threading.Lock()


async def retried(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return what a request answers, made again while its errors are of the passing kind.

    Raises:
        Exception: the last error, when it does not pass or tries and time are used up.
    """
    tries, started, done = most_tries(), time.monotonic(), 0
    while True:
        done += 1
        try:
            return await ask()
        except Exception as error:
            reason = passing(error)
            wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (done - 1)))
            waited = time.monotonic() - started
            if not reason or done >= tries or waited + wait > SECONDS:
                raise
        _note(reason, waited)
        log.debug("try %d of %d in %.2f s: %s", done + 1, tries, wait, reason)
        await asyncio.sleep(wait)


def _note(reason: str, waited: float) -> None:
    """Count a try that is made again; say so where nothing else would tell why a run stands still."""
    global _told
    with _lock:
        _counted[reason] += 1
        now = time.monotonic()
        if waited < SILENT_SECONDS or now - _told < SILENT_SECONDS:
            return
        _told = now
    log.warning(
        "object storage has not answered for %.0f s (%s): asking again, for %.0f s at most; "
        "see AWS_ENDPOINT_URL and the network",
        waited,
        reason,
        SECONDS,
    )


def counted() -> dict[str, int]:
    """Return how often this process has made a request again, by reason."""
    with _lock:
        return dict(_counted)


def most_tries() -> int:
    """Return how often a request is made at most.

    Raises:
        ValueError: AWS_MAX_ATTEMPTS is no whole number from 1.
    """
    told = os.environ.get("AWS_MAX_ATTEMPTS", "").strip()
    if not told:
        return TRIES
    if not told.isdecimal() or int(told) < 1:
        raise ValueError(f"AWS_MAX_ATTEMPTS must be a whole number from 1, got {told!r}")
    return int(told)


def passing(error: BaseException) -> str:
    """Name the kind of an error that may pass by itself; '' for one that will not."""
    from botocore import exceptions, parsers  # late: who works on a local disk need not wait for it

    code, status = error_code(error), _status(error)
    if code or status:
        return (code or str(status)) if code in _CODES or status in _STATUS else ""
    broken = (
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        exceptions.ConnectionError,
        parsers.ResponseParserError,  # an answer cut short
        TimeoutError,
        ConnectionError,
    )
    return type(error).__name__ if isinstance(error, broken) else ""


def error_code(error: BaseException) -> str:
    """Return the error code of the S3 answer behind an error of s3fs, '' without one."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: BaseException) -> dict:
    """Return the parsed answer that botocore's ClientError holds; s3fs chains it as the cause of its own."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}
