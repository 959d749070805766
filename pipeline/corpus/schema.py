"""The sample table: which columns of a source hold what, and how a key becomes an id.

A source names its columns in the config or by one of the known aliases; `resolve_columns` settles it once
per unit, before any row is read. Nothing here reads a file or looks inside a row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

Side = Literal["image", "text"]
SIDES: tuple[Side, Side] = ("image", "text")
Kind = Literal["pixels", "text", "features"]

ALIASES: dict[str, tuple[str, ...]] = {
    "key": ("key", "id", "uid"),
    "image": ("image", "jpg"),
    "image_features": ("image_features",),
    "text": ("caption", "text", "TEXT", "txt"),
    "text_features": ("text_features",),
    "labels": ("labels",),
    "split": ("split",),
    "updated": ("updated",),
}
"""Names under which a column is found when the config does not name it; the first that exists is taken."""


class SchemaError(ValueError):
    """A source's columns are not what the job needs."""


class Columns(BaseModel):
    """The names of a source's columns; None finds the column by its alias."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    image: str | None = None
    image_features: str | None = None
    text: str | None = None
    text_features: str | None = None
    labels: str | None = None
    split: str | None = None
    updated: str | None = None
    passthrough: tuple[str, ...] = ()


@dataclass(frozen=True)
class SideColumn:
    """The column that one side is read from."""

    name: str
    kind: Kind
    width: int | None = None  # of features, where the type fixes it


@dataclass(frozen=True)
class ColumnMap:
    """The columns of one source, found and checked."""

    key: str
    image: SideColumn | None
    text: SideColumn | None
    labels: str | None = None
    split: str | None = None
    updated: str | None = None  # a token of the row that changes whenever its bytes do
    passthrough: tuple[str, ...] = ()

    def side(self, side: Side) -> SideColumn | None:
        """Return the column of a side, or None where the source has none."""
        return self.image if side == "image" else self.text

    def names(self, sides: Sequence[Side] = SIDES, *, extras: bool = False) -> list[str]:
        """Return the columns to read for these sides; with `extras` labels, split and the like too."""
        columns = [column.name for side in sides if (column := self.side(side)) is not None]
        others = [self.labels, self.split, self.updated, *self.passthrough] if extras else []
        return list(dict.fromkeys([self.key, *columns, *(name for name in others if name is not None)]))


def resolve_columns(
    schema: pa.Schema, columns: Columns, *, where: str, sides: Sequence[Side] = SIDES
) -> ColumnMap:
    """Find the columns of a source and check their types.

    A name given in `columns` must exist. A name not given is found by its alias, the first of `ALIASES` that
    the source has; a picture or text column is preferred to a feature column of the same side.

    Args:
        where: the source's name, for the error.
        sides: the sides that must be there; another side is mapped too if the source has it.
    Raises:
        SchemaError: a column is missing or has a type that its role cannot hold; says what was found.
    """
    finder = _Finder(schema, columns, where)
    image = finder.side("image", required="image" in sides)
    text = finder.side("text", required="text" in sides)
    if image is None and text is None:
        raise finder.missing("'image' or 'text'")
    for name in columns.passthrough:
        if name not in schema.names:
            raise finder.missing(f"'{name}' (data.columns.passthrough)")
    return ColumnMap(
        key=finder.key(),
        image=image,
        text=text,
        labels=finder.typed("labels", _is_int_list, "a list of integers"),
        split=finder.typed("split", _is_string, "a string"),
        updated=finder.find("updated"),
        passthrough=columns.passthrough,
    )


def sample_ids(keys: Iterable[str]) -> np.ndarray:
    """Return the (N,) int64 ids of keys: 63 bits of blake2b. They order; they are no identity.

    Raises:
        ValueError: a key cannot be written as UTF-8.
    """
    try:
        digests = b"".join([blake2b(key.encode(), digest_size=8).digest() for key in keys])
    except UnicodeEncodeError as error:
        raise ValueError(f"a key must be UTF-8, got {error.object!r}") from None
    return (np.frombuffer(digests, dtype=">u8") >> np.uint64(1)).astype(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's three kinds of list."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is a string or bytes."""
    return _is_string(kind) or _is_binary(kind)


class _Finder:
    """Looks roles up in one schema; knows how to complain."""

    def __init__(self, schema: pa.Schema, columns: Columns, where: str) -> None:
        self.schema, self.columns, self.where = schema, columns, where

    def missing(self, what: str) -> SchemaError:
        found = ", ".join(self.schema.names) or "no columns at all"
        return SchemaError(f"{self.where}: no column {what}; found: {found}; name it under data.columns")

    def wrong(self, name: str, expected: str) -> SchemaError:
        return SchemaError(
            f"{self.where}: column '{name}' must be {expected}, got {self.schema.field(name).type}"
        )

    def find(self, role: str) -> str | None:
        given = getattr(self.columns, role)
        if given is not None and given not in self.schema.names:
            raise self.missing(f"'{given}' (data.columns.{role})")
        name = given or next((name for name in ALIASES[role] if name in self.schema.names), None)
        if self.schema.names.count(name) > 1:
            raise SchemaError(
                f"{self.where}: column '{name}' stands more than once; drop or rename the others"
            )
        return name

    def typed(self, role: str, accepts: Callable[[pa.DataType], bool], expected: str) -> str | None:
        name = self.find(role)
        if name is not None and not accepts(_plain(self.schema.field(name).type)):
            raise self.wrong(name, expected)
        return name

    def key(self) -> str:
        name = self.typed("key", _is_key, "a string or an integer")
        if name is None:
            raise self.missing(" or ".join(f"'{alias}'" for alias in ALIASES["key"]))
        return name

    def side(self, side: Side, *, required: bool) -> SideColumn | None:
        given, features_given = getattr(self.columns, side), getattr(self.columns, f"{side}_features")
        if given is not None and features_given is not None:
            raise SchemaError(
                f"data.columns.{side} and data.columns.{side}_features are both set; a side has one column"
            )
        raw = None
        if features_given is None:
            raw = (
                self.typed("image", _is_image, "binary or a struct with binary `bytes`")
                if side == "image"
                else self.typed("text", _is_text, "a string or a list of strings")
            )
        if raw is not None:
            return SideColumn(raw, "pixels" if side == "image" else "text")
        role = f"{side}_features"
        name = self.typed(role, _is_float_list, "a list of floats")
        if name is None:
            if required:
                known = " or ".join(f"'{alias}'" for alias in (*ALIASES[side], *ALIASES[role]))
                raise self.missing(known)
            return None
        kind = self.schema.field(name).type
        return SideColumn(name, "features", kind.list_size if pa.types.is_fixed_size_list(kind) else None)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values behind a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_key(kind: pa.DataType) -> bool:
    return bool(_is_string(kind) or _is_binary(kind) or pa.types.is_integer(kind))


def _is_image(kind: pa.DataType) -> bool:
    # An all-null column has no better type: every row is absent on this side.
    if pa.types.is_null(kind) or _is_binary(kind):
        return True
    return bool(
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind) or _is_string(kind):
        return True
    return is_list(kind) and _is_string(_plain(kind.value_type))


def _is_float_list(kind: pa.DataType) -> bool:
    return is_list(kind) and bool(pa.types.is_floating(kind.value_type))


def _is_int_list(kind: pa.DataType) -> bool:
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type))
