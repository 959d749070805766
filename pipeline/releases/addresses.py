"""Names of immutable files: digests of all that went into them, and their places in a store. Pure functions.

A digest here is 32 lower-case hex digits of blake2b over canonical JSON. The digests of a release cover
addresses and sha256s only: no time, host or measured figure.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def digest_bytes(data: bytes) -> str:
    """Return the 32 hex digits that name `data`."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of a JSON value; the order of keys in objects does not count.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON cannot say.
        TypeError: the value holds something that is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return digest_bytes(text.encode("ascii"))


def sha256(data: bytes) -> str:
    """Return the 64 hex digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def unit_token(size: int, token: str, row_groups: tuple[int, int] | None = None) -> str:
    """Return the digest that names one version of one unit.

    Args:
        size: bytes of the source file.
        token: what the storage says of its version (`SourceFile.token`).
        row_groups: first and one past the last row group, when the unit is a part of its file.
    """
    return digest_json(["unit", size, token, list(row_groups) if row_groups else None])


def code_address(unit: str, side: str, *, fingerprint: str, recipe: str, packer_version: int) -> str:
    """Return the address of the code file of one side of one unit.

    Args:
        unit: a unit token.
        side: `image` or `text`.
        fingerprint: of that side's tower.
        recipe: digest of the input recipe.
        packer_version: `pipeline.codes.PACKER_VERSION`.
    """
    return digest_json(["codes", unit, side, fingerprint, recipe, packer_version])


def part_address(members: Sequence[tuple[str, str]], side: str, *, recipe: dict[str, Any]) -> str:
    """Return the address of an index part.

    Args:
        members: (unit path, code address) of every unit in the part, in order; paths stand in keys.arrow.
        side: `image` or `text`.
        recipe: all else the bytes depend on: factory string, quantiser digest, pass-through columns.
    """
    return digest_json(["part", [list(member) for member in members], side, recipe])


def code_path(address: str) -> str:
    """Return where the code file of an address lies."""
    return f"codes/{check_digest(address)}.parquet"


def rejects_path(address: str) -> str:
    """Return where the rejects of an address lie."""
    return f"rejects/{check_digest(address)}.parquet"


def part_path(address: str) -> str:
    """Return where the FAISS file of a part lies."""
    return f"parts/{check_digest(address)}.faiss"


def part_keys_path(address: str) -> str:
    """Return where the keys of a part lie."""
    return f"parts/{check_digest(address)}.keys.arrow"


def quantiser_path(digest: str) -> str:
    """Return where a coarse quantiser lies."""
    return f"quantisers/{check_digest(digest)}.faiss"


def model_path(digest: str) -> str:
    """Return the folder of a model artefact. An artefact's digest may have another length than ours."""
    if not re.fullmatch(r"[0-9a-f]{8,128}", digest):
        raise ValueError(f"a model digest is 8 to 128 lower-case hex digits, got {digest!r}")
    return f"models/{digest}"


def release_path(digest: str) -> str:
    """Return where the manifest of a release lies."""
    return f"releases/{check_digest(digest)}.json"


def table_path(digest: str) -> str:
    """Return where a table of a release lies, named by its SHA-256."""
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"a table is named by 64 lower-case hex digits, got {digest!r}")
    return f"tables/{digest}.parquet"


def heads_folder(channel: str) -> str:
    """Return the folder of a channel's log.

    Raises:
        ValueError: the channel's name could not be a folder's.
    """
    if not _CHANNEL.fullmatch(channel):
        raise ValueError(f"a channel is named by letters, digits, '.', '_' and '-', got {channel!r}")
    return f"heads/{channel}"


def check_digest(digest: str) -> str:
    """Return `digest` when it is 32 lower-case hex digits: nothing else may become part of a path.

    Raises:
        ValueError: it is not.
    """
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"a digest is 32 lower-case hex digits, got {digest!r}")
    return digest


def check_path(path: str) -> str:
    """Return `path` when it stays below the root it is relative to.

    Raises:
        ValueError: it is empty, absolute, holds '.', '..', an empty step or NUL, or
            cannot be written as UTF-8.
    """
    steps = path.split("/")
    if not path or "\0" in path or any(step in ("", ".", "..") for step in steps):
        raise ValueError(f"a path must be relative and without '..', '.' or empty steps, got {path!r}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a path must be UTF-8, got {path!r}; rename the file") from None
    return path
