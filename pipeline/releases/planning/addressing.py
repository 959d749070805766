"""Unit tokens and code addresses of whole columns: equal to those of `addresses.py`, without a call per row.

The canonical JSON of a row is joined by Arrow; what is left per row is one hash. A million addresses take
about a second, and the Python objects of one slice at a time.
"""

import json
from collections.abc import Callable
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

_SLICE = 1 << 16
_ESCAPED = r"[^ !#-\[\]-~]"  # what JSON does not write as it is, in ASCII


def unit_tokens(units: pa.Table) -> pa.ChunkedArray:
    """Return `unit_token` of every row of a table with the columns of SOURCE and a range of row groups."""
    return _digests(units.select(["size", "token", "first_row_group", "last_row_group"]), _unit_texts)


def code_addresses(
    units: pa.ChunkedArray, side: str, *, fingerprint: str, recipe: str, packer_version: int
) -> pa.ChunkedArray:
    """Return `code_address` of every unit token, for one side.

    Args:
        units: unit tokens, which are digests: nothing in them needs an escape.
    """
    before = '["codes","'
    after = f'",{json.dumps(side)},{json.dumps(fingerprint)},{json.dumps(recipe)},{packer_version}]'

    def texts(table: pa.Table) -> pa.ChunkedArray:
        return pc.binary_join_element_wise(before, table["unit"], after, "")

    return _digests(pa.table({"unit": units}), texts)


def _unit_texts(table: pa.Table) -> pa.ChunkedArray:
    first, last = (pc.cast(table[f"{end}_row_group"], pa.string()) for end in ("first", "last"))
    row_groups = pc.fill_null(pc.binary_join_element_wise("[", first, ",", last, "]", ""), "null")
    size = pc.cast(table["size"], pa.string())
    return pc.binary_join_element_wise(
        '["unit",', size, ",", _quoted(table["token"]), ",", row_groups, "]", ""
    )


def _quoted(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as JSON strings."""
    if pc.any(pc.match_substring_regex(texts, _ESCAPED)).as_py():
        return pa.chunked_array([pa.array([json.dumps(text) for text in texts.to_pylist()], pa.string())])
    return pc.binary_join_element_wise('"', texts, '"', "")


def _digests(table: pa.Table, texts: Callable[[pa.Table], pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks = []
    for start in range(0, len(table), _SLICE):
        column = texts(table.slice(start, _SLICE)).cast(pa.binary())
        found = [blake2b(text, digest_size=16).hexdigest() for text in column.to_pylist()]
        chunks.append(pa.array(found, pa.string()))
    return pa.chunked_array(chunks, pa.string())
