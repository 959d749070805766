import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.corpus.decode import (
    DecodeLimits,
    InputRecipe,
    content_hash,
    decode_image,
    decode_pairs,
    decode_table,
)
from pipeline.corpus.schema import SIDES, Columns, Side, resolve_columns, sample_ids

SIZE = 8
RECIPE = InputRecipe(image_size=SIZE, limits=DecodeLimits(max_text_bytes=40))


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (shade, 0, 255 - shade)).save(stream, "JPEG")
    return stream.getvalue()


PICTURES = [picture(shade) for shade in (0, 90, 200)]
GOOD = {"image": PICTURES, "text": ["a red boat", "ein Haus", "雪の家"]}
BAD: dict[Side, list[Any]] = {
    "image": [b"", b"no picture", PICTURES[0][:200]],
    "text": ["", "  \n ", "x" * 41],
}


def table_of(**columns: Any) -> pa.Table:
    return pa.table({name: pa.chunked_array([values]) for name, values in columns.items()})


def pixels_and_texts(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([("key", pa.string()), ("image", pa.large_binary()), ("text", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def decode(table: pa.Table, recipe: InputRecipe = RECIPE, **options: Any) -> dict[Side, Any]:
    columns = resolve_columns(table.schema, recipe.columns, where="t", sides=[])
    return decode_table(table, columns, recipe, **options)


values = {
    side: st.one_of(st.none(), st.sampled_from(GOOD[side]), st.sampled_from(BAD[side])) for side in SIDES
}
keys = st.one_of(st.none(), st.just(""), st.text(min_size=1, max_size=5))
tables = st.lists(st.fixed_dictionaries({"key": keys, **values}), max_size=12)


@given(tables, st.integers(0, 1000))
def test_the_ledger_balances_on_each_side(rows: list[dict[str, Any]], first_row: int) -> None:
    for side, decoded in decode(pixels_and_texts(rows), first_row=first_row).items():
        wanted = {"kept": [], "rejected": [], "absent": 0}
        for number, row in enumerate(rows, start=first_row):
            if row[side] is None:
                wanted["absent"] += 1
            elif not row["key"] or row[side] in BAD[side]:
                wanted["rejected"].append((number, row["key"] or ""))
            else:
                wanted["kept"].append((number, row["key"], row[side]))
        assert decoded.read == len(rows) == len(decoded.rows) + len(decoded.rejects) + decoded.absent
        assert decoded.absent == wanted["absent"]
        assert [(reject.row, reject.key) for reject in decoded.rejects] == wanted["rejected"]
        assert list(zip(decoded.rows.tolist(), decoded.keys, strict=True)) == [k[:2] for k in wanted["kept"]]
        for (_, _, stored), value, digest in zip(wanted["kept"], decoded.values, decoded.hashes, strict=True):
            raw = stored if side == "image" else stored.encode()
            assert digest.tobytes() == content_hash(raw)
            assert np.array_equal(value, decode_image(raw, RECIPE)) if side == "image" else value == stored


@given(tables)
def test_a_row_does_not_depend_on_the_rows_around_it(rows: list[dict[str, Any]]) -> None:
    whole = decode(pixels_and_texts(rows))
    for number in range(len(rows)):
        alone = decode(pixels_and_texts(rows).slice(number, 1), first_row=number)
        for side in SIDES:
            at = np.flatnonzero(whole[side].rows == number)
            assert alone[side].rows.tolist() == whole[side].rows[at].tolist()
            assert alone[side].hashes.tolist() == whole[side].hashes[at].tolist()
            assert [np.asarray(v).tolist() for v in alone[side].values] == [
                np.asarray(whole[side].values[i]).tolist() for i in at
            ]
            assert alone[side].rejects == [r for r in whole[side].rejects if r.row == number]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty image"),
        (b"GIF89a but not really", "not an image"),
        (PICTURES[0][:200], "truncated image"),
    ],
)
def test_a_picture_that_does_not_decode_is_a_reject_with_its_reason(image: bytes, reason: str) -> None:
    decoded = decode(pixels_and_texts([{"key": "k", "image": image, "text": "a"}]), first_row=7)
    (reject,) = decoded["image"].rejects
    assert (reject.row, reject.key, reject.reason) == (7, "k", reason) and reject.error
    assert decoded["text"].rows.tolist() == [7]


def test_a_text_that_is_not_utf8_is_a_reject() -> None:
    broken = pa.array([b"caf\xe9", b"caf\xc3\xa9"]).cast(pa.string(), safe=False)
    decoded = decode(table_of(key=["a", "b"], image=PICTURES[:2], text=broken), sides=["text"])
    assert [reject.reason for reject in decoded["text"].rejects] == ["text not UTF-8"]
    assert decoded["text"].values == ["café"]


def test_integer_keys_become_decimal_strings() -> None:
    decoded = decode(table_of(id=[7, None, -3], text=["a", "b", "c"]), sides=["text"])["text"]
    assert decoded.keys == ["7", "-3"]
    assert [reject.reason for reject in decoded.rejects] == ["missing key"]


@pytest.mark.parametrize("kind", [pa.int16(), pa.string()])
def test_keys_may_come_from_a_dictionary(kind: pa.DataType) -> None:
    keys = pa.array([1, 2, 1]).cast(kind).dictionary_encode()
    assert decode(table_of(id=keys, text=["a", "b", "c"]), sides=["text"])["text"].keys == ["1", "2", "1"]


def test_a_key_that_is_not_utf8_is_a_reject_on_every_side_that_has_a_value() -> None:
    keys = pa.array([b"\xff", b"ok"]).cast(pa.string(), safe=False)
    decoded = decode(table_of(key=keys, image=PICTURES[:2], text=pa.array([None, "b"])))
    assert [reject.reason for reject in decoded["image"].rejects] == ["missing key"]
    assert (decoded["text"].rejects, decoded["text"].absent) == ([], 1)


def test_of_a_list_of_texts_the_first_that_is_not_blank_is_taken() -> None:
    lists = [["", " ", "b", "c"], None, [], [None, "d"], ["e"]]
    whole = table_of(key=list("vwxyz"), text=pa.array(lists, pa.list_(pa.string())))
    decoded = decode(whole, sides=["text"])["text"]
    assert (decoded.values, decoded.absent) == (["b", "d", "e"], 1)
    assert [(reject.row, reject.reason) for reject in decoded.rejects] == [(2, "empty text")]
    assert decode(whole.slice(3), sides=["text"])["text"].values == ["d", "e"]


def test_pictures_may_stand_in_a_struct_with_their_path() -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [{"bytes": PICTURES[0], "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    plain = decode(pixels_and_texts([{"key": "a", "image": PICTURES[0], "text": None}]))["image"]
    decoded = decode(table_of(key=list("abc"), image=pa.array(structs, kind)), sides=["image"])["image"]
    assert decoded.absent == 2
    np.testing.assert_array_equal(decoded.values, plain.values)
    np.testing.assert_array_equal(decoded.hashes, plain.hashes)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float32())]
)
def test_features_are_checked_row_by_row(kind: pa.DataType) -> None:
    rows = [[1, 2, 3], None, [1, float("nan"), 0], [float("inf"), 0, 0], [1, None, 2], [-4, 0, 0.5]]
    table = table_of(key=list("abcdef"), text_features=pa.array(rows, kind))
    recipe = InputRecipe(text_width=3)
    for start in (0, 3):
        decoded = decode(table.slice(start), recipe, sides=["text"], first_row=start)["text"]
        kept = [row for row in (0, 5) if row >= start]
        assert decoded.rows.tolist() == kept and decoded.values.dtype == np.float32
        assert decoded.values.tolist() == [rows[row] for row in kept]
        assert {reject.reason for reject in decoded.rejects} == {"feature not finite"}
        assert [reject.row for reject in decoded.rejects] == [row for row in (2, 3, 4) if row >= start]


def test_features_of_another_width_or_beyond_float32_are_rejects() -> None:
    rows = [[1.0, 2.0], [1.0], [], [1e300, 0.0]]
    table = table_of(key=list("abcd"), image_features=pa.array(rows, pa.list_(pa.float64())))
    decoded = decode(table, InputRecipe(image_width=2), sides=["image"])["image"]
    assert decoded.values.tolist() == [[1.0, 2.0]]
    assert [reject.reason for reject in decoded.rejects] == [
        *["wrong feature width"] * 2,
        "feature not finite",
    ]


def test_what_the_recipe_must_say_is_asked_for() -> None:
    with pytest.raises(TypeError, match="image_size must be set"):
        decode(pixels_and_texts([{"key": "a", "image": PICTURES[0], "text": "a"}]), InputRecipe())
    with pytest.raises(TypeError, match="set image_width or text_width"):
        decode(table_of(key=["a"], text_features=[[1.0]]), InputRecipe(), sides=["text"])


def test_a_side_without_a_column_is_absent_in_every_row() -> None:
    decoded = decode(table_of(key=list("abc"), text=["a", "", None]))
    assert (decoded["image"].read, decoded["image"].absent) == (3, 3)
    assert len(decoded["image"].values) == len(decoded["image"].hashes) == 0


def test_hashes_are_left_out_on_request() -> None:
    decoded = decode(pixels_and_texts([{"key": "a", "image": PICTURES[0], "text": "a"}]), hashes=False)
    assert decoded["image"].hashes.shape == decoded["text"].hashes.shape == (0, 16)


@given(tables)
def test_pairs_are_the_rows_complete_on_both_sides_and_every_other_is_counted(
    rows: list[dict[str, Any]],
) -> None:
    table = pixels_and_texts(rows).append_column(
        "labels", pa.array([[i, 7] for i in range(len(rows))], pa.list_(pa.int16()))
    )
    pairs = decode_pairs(table, resolve_columns(table.schema, Columns(), where="t"), RECIPE, first_row=50)
    complete = [
        i
        for i, row in enumerate(rows)
        if row["key"] and all(row[side] is not None and row[side] not in BAD[side] for side in SIDES)
    ]
    assert pairs.rows.tolist() == [50 + i for i in complete]
    assert pairs.keys == [rows[i]["key"] for i in complete]
    assert pairs.ids.tolist() == sample_ids(pairs.keys).tolist()
    assert pairs.text == [rows[i]["text"] for i in complete]
    assert pairs.image.tolist() == [decode_image(rows[i]["image"], RECIPE).tolist() for i in complete]
    assert [labels.tolist() for labels in pairs.labels or []] == [[i, 7] for i in complete]
    assert sum(pairs.dropped.values()) == len(rows) - len(complete)


def test_pairs_are_dropped_by_the_reason_of_their_first_faulty_side() -> None:
    rows = [
        {"key": "a", "image": None, "text": ""},
        {"key": "b", "image": PICTURES[0], "text": None},
        {"key": "c", "image": b"", "text": None},
        {"key": "", "image": PICTURES[0], "text": "c"},
        {"key": "d", "image": PICTURES[0], "text": " "},
    ]
    table = pixels_and_texts(rows)
    pairs = decode_pairs(table, resolve_columns(table.schema, Columns(), where="t"), RECIPE)
    assert (len(pairs.keys), pairs.labels) == (0, None)
    assert pairs.dropped == {
        "image absent": 1,
        "text absent": 1,
        "empty image": 1,
        "missing key": 1,
        "empty text": 1,
    }


def test_null_labels_are_an_empty_set() -> None:
    table = table_of(key=["a", "b"], image=PICTURES[:2], text=["a", "b"], labels=pa.array([None, [3, 1]]))
    pairs = decode_pairs(table, resolve_columns(table.schema, Columns(), where="t"), RECIPE)
    assert [labels.tolist() for labels in pairs.labels or []] == [[], [3, 1]]


def test_a_row_with_a_null_among_its_labels_is_left_out_and_counted() -> None:
    labels = pa.array([[1], [2, None], [None], [], [4]], pa.list_(pa.int32()))
    pictures = [*PICTURES[:2], b"", *PICTURES[:2]]
    table = table_of(key=list("abcde"), image=pictures, text=list("abcde"), labels=labels)
    pairs = decode_pairs(table, resolve_columns(table.schema, Columns(), where="t"), RECIPE, first_row=10)
    assert (pairs.keys, pairs.rows.tolist(), pairs.text) == (list("ade"), [10, 13, 14], list("ade"))
    assert [row.tolist() for row in pairs.labels or []] == [[1], [], [4]]
    assert len(pairs.image) == 3
    assert pairs.dropped == {"empty image": 1, "null among labels": 1}


def test_several_chunks_of_a_column_are_read_as_one() -> None:
    rows = [{"key": str(i), "image": PICTURES[i % 3], "text": f"text {i}"} for i in range(7)]
    whole = pixels_and_texts(rows)
    chunked = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 1), whole.slice(3)])
    for side in SIDES:
        one, many = decode(whole)[side], decode(chunked)[side]
        assert one.keys == many.keys and np.array_equal(one.hashes, many.hashes)
        assert np.array_equal(one.values, many.values)
