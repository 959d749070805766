from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.corpus.schema import (
    ALIASES,
    Columns,
    SchemaError,
    SideColumn,
    resolve_columns,
    sample_ids,
)

IMAGES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.null(),
]
TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.string()),
    pa.large_list(pa.large_string()),
    pa.null(),
]


def schema_of(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


def plain(**columns: pa.DataType) -> pa.Schema:
    return schema_of(**({"key": pa.string(), "image": pa.binary(), "text": pa.string()} | columns))


@pytest.mark.parametrize("key", ALIASES["key"])
@pytest.mark.parametrize("image", ALIASES["image"])
@pytest.mark.parametrize("text", ALIASES["text"])
def test_columns_are_found_by_their_aliases(key: str, image: str, text: str) -> None:
    schema = schema_of(**{key: pa.int64(), image: pa.binary(), text: pa.string()})
    found = resolve_columns(schema, Columns(), where="a.parquet")
    assert (found.key, found.image, found.text) == (
        key,
        SideColumn(image, "pixels"),
        SideColumn(text, "text"),
    )


def test_the_first_alias_that_exists_is_taken() -> None:
    schema = schema_of(
        uid=pa.string(), key=pa.string(), jpg=pa.binary(), text=pa.string(), caption=pa.string()
    )
    found = resolve_columns(schema, Columns(), where="a.parquet")
    assert found.names() == ["key", "jpg", "caption"]


def test_a_named_column_is_preferred_to_an_alias() -> None:
    schema = plain(alt=pa.string(), shop=pa.string())
    found = resolve_columns(schema, Columns(key="shop", text="alt"), where="a.parquet")
    assert found.names() == ["shop", "image", "alt"]


@pytest.mark.parametrize("kind", IMAGES, ids=str)
def test_pictures_may_be_any_kind_of_bytes(kind: pa.DataType) -> None:
    assert resolve_columns(plain(image=kind), Columns(), where="a").image == SideColumn("image", "pixels")


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_texts_may_be_any_kind_of_string_or_a_list_of_them(kind: pa.DataType) -> None:
    assert resolve_columns(plain(text=kind), Columns(), where="a").text == SideColumn("text", "text")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 10), pa.list_(pa.float16(), 3)]
)
def test_feature_columns_tell_their_width_where_the_type_fixes_it(kind: pa.DataType) -> None:
    schema = schema_of(id=pa.int64(), image_features=kind, text_features=kind)
    found = resolve_columns(schema, Columns(), where="a.parquet")
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    assert found.image == SideColumn("image_features", "features", width)
    assert found.text == SideColumn("text_features", "features", width)


def test_pictures_are_preferred_to_features_unless_the_features_are_named() -> None:
    schema = plain(image_features=pa.list_(pa.float32(), 4))
    assert resolve_columns(schema, Columns(), where="a").image == SideColumn("image", "pixels")
    named = resolve_columns(schema, Columns(image_features="image_features"), where="a")
    assert named.image == SideColumn("image_features", "features", 4)


def test_a_side_that_is_not_asked_for_may_be_missing() -> None:
    schema = schema_of(id=pa.int64(), jpg=pa.binary())
    found = resolve_columns(schema, Columns(), where="a.parquet", sides=["image"])
    assert found.text is None and found.names() == ["id", "jpg"]


def test_names_are_unique_and_extras_come_last() -> None:
    schema = plain(labels=pa.list_(pa.int16()), split=pa.string(), updated=pa.int64(), url=pa.string())
    found = resolve_columns(schema, Columns(passthrough=("url", "key")), where="a.parquet")
    assert found.names(["text"]) == ["key", "text"]
    assert found.names(extras=True) == ["key", "image", "text", "labels", "split", "updated", "url"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(text="alt"),
            r"part-3.parquet: no column 'alt' \(data.columns.text\); found: key, image, text",
        ),
        (Columns(passthrough=("url",)), "part-3.parquet: no column 'url'.*found: key, image, text"),
        (Columns(image="text"), "part-3.parquet: column 'text' must be binary .*got string"),
        (Columns(text="image"), "part-3.parquet: column 'image' must be a string .*got binary"),
        (Columns(image="image", image_features="key"), "data.columns.image and .* are both set"),
        (Columns(labels="text"), "column 'text' must be a list of integers, got string"),
        (Columns(text_features="text"), "column 'text' must be a list of floats, got string"),
    ],
)
def test_a_wrong_column_is_named_with_what_was_found(columns: Columns, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        resolve_columns(plain(), columns, where="part-3.parquet")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            schema_of(image=pa.binary(), text=pa.string()),
            "no column 'key' or 'id' or 'uid'; found: image, text",
        ),
        (
            schema_of(key=pa.string(), text=pa.string()),
            "no column 'image' or 'jpg' or 'image_features'; found",
        ),
        (
            schema_of(key=pa.string(), image=pa.binary()),
            "no column 'caption' or .* or 'text_features'; found",
        ),
        (schema_of(), "found: no columns at all"),
        (plain(key=pa.float64()), "column 'key' must be a string or an integer, got double"),
        (plain(image=pa.struct([("path", pa.string())])), "column 'image' must be binary or a struct"),
        (plain(text=pa.list_(pa.int32())), "column 'text' must be a string or a list of strings"),
    ],
)
def test_a_source_without_what_is_needed_is_refused(schema: pa.Schema, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        resolve_columns(schema, Columns(), where="a.parquet")


def test_a_column_that_stands_twice_is_refused_if_it_is_needed() -> None:
    twice = [
        ("key", pa.string()),
        ("text", pa.string()),
        ("text", pa.string()),
        ("x", pa.null()),
        ("x", pa.null()),
    ]
    with pytest.raises(SchemaError, match="column 'text' stands more than once; drop or rename"):
        resolve_columns(pa.schema(twice), Columns(), where="t", sides=("text",))
    resolve_columns(pa.schema([*twice[:2], *twice[3:]]), Columns(), where="t", sides=("text",))


def test_a_source_with_neither_side_is_refused_whatever_is_asked() -> None:
    with pytest.raises(SchemaError, match="no column 'image' or 'text'; found: id"):
        resolve_columns(schema_of(id=pa.int64()), Columns(), where="a.parquet", sides=[])


def test_an_unknown_role_is_an_error() -> None:
    with pytest.raises(ValidationError, match="captoin"):
        Columns.model_validate({"captoin": "text"})


@given(st.lists(st.text(min_size=1)))
def test_ids_are_the_first_63_bits_of_the_digest(keys: list[str]) -> None:
    ids = sample_ids(keys)
    assert ids.dtype == np.int64 and ids.shape == (len(keys),)
    for key, number in zip(keys, ids.tolist(), strict=True):
        bits = "".join(f"{byte:08b}" for byte in blake2b(key.encode(), digest_size=8).digest())
        assert number == int(bits[:63], 2) >= 0
