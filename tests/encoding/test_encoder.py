"""From chunk to receipt: a row's code is its own, and what is wrong with a row or a unit is data."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmh_models.method import HashMethod
from pipeline.codes import pack
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.chunks import Chunk, plan_chunks
from pipeline.encoding.decoding import Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk, encode_side, relaxed_codes
from pipeline.releases.storage import SourceFile, Storage
from tests.encoding.sources import BAD_ROWS, FEATURES, TOWERS, good_rows, tiny_method, write_rows

RECIPE = InputRecipe(image_size=16)


@pytest.fixture(scope="module")
def method() -> HashMethod:
    return tiny_method()


def listed(path: Path) -> SourceFile:
    return Storage(path.parent).stat(path.name)


def chunks_of(path: Path, max_bytes: int) -> list[Chunk]:
    return plan_chunks(listed(path), pq.read_metadata(path), max_bytes=max_bytes, image_size=16)


def draw(side: str, count: int) -> list[str] | np.ndarray:
    rng = np.random.default_rng(3)
    if side == "image":
        return rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [" ".join(rng.choice(list("abcdefghij"), size=rng.integers(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_a_relaxed_code_does_not_depend_on_its_neighbours(method: HashMethod, side, count: int) -> None:
    values = draw(side, count)
    together = relaxed_codes(method, side, values, tile=8)
    alone = np.concatenate([relaxed_codes(method, side, values[i : i + 1], tile=8) for i in range(count)])
    order = np.random.default_rng(4).permutation(count)
    shuffled = relaxed_codes(method, side, [values[i] for i in order], tile=8)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[order], shuffled)
    np.testing.assert_array_equal(encode_side(method, side, values, tile=8), pack(together))


def test_every_pass_has_as_many_rows_and_of_pictures_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = tiny_method(), list[int]()
    collate = method.collate
    monkeypatch.setattr(method, "collate", lambda side, rows: seen.append(len(rows)) or collate(side, rows))
    for side, count, tile, passes in (
        ("text", 9, 8, [8, 8]),
        ("image", 9, 16, [4, 4, 4]),
        ("image", 2, 3, [1, 1]),
    ):
        seen.clear()
        relaxed_codes(method, side, draw(side, count), tile=tile)
        assert seen == passes


@pytest.mark.parametrize("threads", [2, 3])
def test_a_relaxed_code_does_not_depend_on_the_threads_of_the_process(threads: int) -> None:
    method = tiny_method(TOWERS | {"image": {"name": "cnn", "image_size": 16}})
    values, before = draw("image", 9), torch.get_num_threads()
    alone = relaxed_codes(method, "image", values)
    try:
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(relaxed_codes(method, "image", values), alone)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_encoding_nothing_gives_no_codes(method: HashMethod) -> None:
    assert encode_side(method, "text", []).shape == (0, 2)
    assert encode_side(method, "image", np.empty((0, 16, 16, 3), np.uint8)).shape == (0, 2)


def test_encoding_leaves_the_method_in_the_mode_it_was_in(method: HashMethod) -> None:
    method.train()
    encode_side(method, "text", ["a"])
    assert method.training
    method.eval()


@pytest.mark.parametrize("row_group_size", [3, 100])
@pytest.mark.parametrize("max_bytes", [2000, 6000, 1 << 20])
def test_codes_do_not_depend_on_how_a_unit_is_cut(
    tmp_path: Path, method: HashMethod, row_group_size: int, max_bytes: int
) -> None:
    rows = good_rows(0, 11)
    path = write_rows(tmp_path / "u.parquet", rows, row_group_size=row_group_size)
    source, encode = Source(Storage(tmp_path), RECIPE), EncodeChunk(method, tile=4)
    receipts = [encode(chunk, decode_pieces(chunk, source)) for chunk in chunks_of(path, max_bytes)]
    assert [r.error for r in receipts] == [""] * len(receipts)
    assert pa.concat_arrays([r.keys for r in receipts]).to_pylist() == [key for key, _, _ in rows]
    texts = np.concatenate([r.sides["text"].codes for r in receipts])
    np.testing.assert_array_equal(texts, encode_side(method, "text", [text for *_, text in rows], tile=4))
    assert np.concatenate([r.sides["image"].rows for r in receipts]).tolist() == list(range(11))


def test_every_bad_row_is_a_reject_or_absent(tmp_path: Path, method: HashMethod) -> None:
    path = write_rows(tmp_path / "u.parquet", BAD_ROWS)
    [chunk] = chunks_of(path, 1 << 20)
    receipt = EncodeChunk(method)(chunk, decode_pieces(chunk, Source(Storage(tmp_path), RECIPE)))
    reasons = {side: {r.row: r.reason for r in made.rejects} for side, made in receipt.sides.items()}
    assert reasons["image"].keys() == {1, 2, 3, 9, 10}
    assert reasons["text"].keys() == {4, 9, 10}
    assert reasons["text"][4] == "empty text"
    assert reasons["image"][9] == "missing key"
    assert (receipt.sides["image"].absent, receipt.sides["text"].absent) == (2, 2)
    for side in receipt.sides.values():
        assert side.read == len(BAD_ROWS) == len(side.rows) + len(side.rejects) + side.absent


def test_only_the_sides_asked_for_are_decoded(tmp_path: Path, method: HashMethod) -> None:
    path = write_rows(tmp_path / "u.parquet", good_rows(0, 3))
    [chunk] = chunks_of(path, 1 << 20)
    decoded = decode_pieces(chunk, Source(Storage(tmp_path), RECIPE), sides=("text",))
    assert EncodeChunk(method)(chunk, decoded).sides.keys() == {"text"}


def test_rows_whose_features_or_codes_are_not_numbers_are_rejects(tmp_path: Path) -> None:
    features = [[1, 2, 3], [np.nan, 0, 0], [np.inf, 0, 0], [3e38, -3e38, 3e38], [4, 5, 6], [1, 2]]
    table = pa.table(
        {
            "key": [str(n) for n in range(6)],
            "image_features": pa.array(features, pa.list_(pa.float32())),
            "text": ["a"] * 6,
        }
    )
    pq.write_table(table, tmp_path / "u.parquet")
    [chunk] = plan_chunks(listed(tmp_path / "u.parquet"), pq.read_metadata(tmp_path / "u.parquet"))
    method = tiny_method(FEATURES)
    method.image.head[0].weight.data.fill_(10)  # 10 * 3e38 - 10 * 3e38 is inf - inf
    [decoded] = decode_pieces(chunk, Source(Storage(tmp_path), InputRecipe(image_width=3)))
    image = EncodeChunk(method)(chunk, [decoded]).sides["image"]
    reasons = {reject.row: reject.reason for reject in image.rejects}
    assert reasons == {
        1: "feature not finite",
        2: "feature not finite",
        3: "code is NaN",
        5: "wrong feature width",
    }
    assert image.rows.tolist() == [0, 4]
    assert len(image.codes) == len(image.hashes) == 2
    with pytest.raises(ValueError, match="codes must not be NaN"):
        encode_side(method, "image", decoded.sides["image"].values)


def test_an_unreadable_chunk_is_a_receipt_with_the_reason(tmp_path: Path, method: HashMethod) -> None:
    path = write_rows(tmp_path / "u.parquet", good_rows(0, 3))
    [chunk] = chunks_of(path, 1 << 20)
    source, encode = Source(Storage(tmp_path), RECIPE), EncodeChunk(method)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "changed after it was listed" in encode(chunk, decode_pieces(chunk, source)).error
    path.write_bytes(b"x" * len(whole))
    assert "Parquet" in encode(chunk, decode_pieces(chunk, source)).error
    path.unlink()
    assert "FileNotFoundError" in encode(chunk, decode_pieces(chunk, source)).error


def test_values_that_the_network_cannot_take_refuse_the_unit(tmp_path: Path, method: HashMethod) -> None:
    path = write_rows(tmp_path / "u.parquet", good_rows(0, 3))
    [chunk] = chunks_of(path, 1 << 20)
    decoded = decode_pieces(chunk, Source(Storage(tmp_path), InputRecipe(image_size=8)))
    assert "(rows, 16, 16, 3) uint8, got (16, 8, 8, 3)" in EncodeChunk(method)(chunk, decoded).error
