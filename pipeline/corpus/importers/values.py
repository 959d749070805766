"""Reading single values of sources that promise no types: keys, labels, pictures, kept fields."""

import json
from typing import Any

from pipeline.corpus.importers.rows import ImportReject


def read_text(value: Any) -> str:
    """Return a value as text, "" for none; bytes that are no UTF-8 come as lone surrogates."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def read_kept(value: Any) -> str | None:
    """Return the value of a kept column: text as it is, anything else as JSON."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def read_labels(value: Any) -> list[int] | None:
    """Return sorted label numbers from a number, a list of them, or text that holds either.

    Raises:
        ValueError: "bad label", then what was found.
    """
    if value is None or value == "":
        return None
    listed = value
    if isinstance(value, str | bytes):
        try:
            listed = json.loads(value)
        except ValueError:
            listed = read_text(value).replace(",", " ").split()
    try:
        return sorted({int(one) for one in (listed if isinstance(listed, list) else [listed])})
    except (TypeError, ValueError):
        raise ValueError(f"bad label: must be whole numbers, got {value!r}") from None


def check_picture(key: str, image: bytes | None, where: str, *, max_bytes: int) -> ImportReject | None:
    """Return the reject of a row whose picture cannot be taken, None of one that can."""
    if image is None:
        return ImportReject(where, key, "missing picture", "the row has none")
    if len(image) == 0:
        return ImportReject(where, key, "empty picture", "it has no bytes")
    if len(image) > max_bytes:
        error = f"must have at most {max_bytes} bytes, got {len(image)}"
        return ImportReject(where, key, "picture too large", error)
    return None
