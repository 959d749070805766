"""Features made by another model, as clip-retrieval writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.importers.embeddings import Embeddings
from pipeline.corpus.schema import Columns, resolve_columns
from tests.corpus.importers.sources import features, folder_of, import_into


def write_partition(folder: Path, number: int, rows: int, *, width: int = 6, **metadata: Any) -> None:
    """Write one partition as `clip-retrieval inference` does: float16 arrays and their metadata."""
    for side, seed in (("img", 1), ("text", 2)):
        (folder / f"{side}_emb").mkdir(parents=True, exist_ok=True)
        values = features(rows, width, seed=seed + 10 * number).astype(np.float16)
        np.save(folder / f"{side}_emb/{side}_emb_{number}.npy", values)
    described = {
        "image_path": [f"p{number}/{n}.jpg" for n in range(rows)],
        "caption": [f'c "{n}"\n é' for n in range(rows)],
        "width": list(range(rows)),
    }
    (folder / "metadata").mkdir(exist_ok=True)
    pq.write_table(pa.table(described | metadata), folder / f"metadata/metadata_{number}.parquet")


def test_rows_keep_their_features_key_and_caption_together(tmp_path: Path) -> None:
    folder = tmp_path / "my émb"
    for number, rows in ((0, 2500), (2, 3), (10, 1)):
        write_partition(folder, number, rows)
    out = import_into(tmp_path / "out", Embeddings(folder_of(folder), keep=["width"]))
    assert [row["key"] for row in out.rows[-4:]] == ["p2/0.jpg", "p2/1.jpg", "p2/2.jpg", "p10/0.jpg"]
    images = [row["image_features"] for row in out.rows]
    np.testing.assert_array_equal(images[:2500], features(2500, 6, seed=1).astype(np.float16))
    np.testing.assert_array_equal(images[2500:2503], features(3, 6, seed=21).astype(np.float16))
    assert (out.rows[1700]["caption_text"], out.rows[1700]["width"]) == ('c "1700"\n é', "1700")


def test_the_jobs_read_both_sides_as_features_without_a_setting(tmp_path: Path) -> None:
    write_partition(tmp_path, 0, 4)
    out = import_into(tmp_path / "out", Embeddings(folder_of(tmp_path)))
    columns = resolve_columns(pq.read_schema(out.files[0]), Columns(), where="test")
    assert columns.image is not None and columns.text is not None
    assert [(side.kind, side.width) for side in (columns.image, columns.text)] == [("features", 6)] * 2


def test_pictures_alone_and_no_metadata_will_do(tmp_path: Path) -> None:
    np.save(tmp_path / "img_emb.npy", features(3, 4))
    out = import_into(tmp_path / "out", Embeddings(folder_of(tmp_path)))
    assert list(out.rows[0]) == ["key", "image_features"]
    assert [row["key"] for row in out.rows] == ["0-000000000", "0-000000001", "0-000000002"]


def test_the_key_column_can_be_named_and_repeats_are_rejects(tmp_path: Path) -> None:
    write_partition(tmp_path, 0, 3, uid=["a", "b", "a"])
    out = import_into(tmp_path / "out", Embeddings(folder_of(tmp_path), columns={"key": "uid"}))
    assert [row["key"] for row in out.rows] == ["a", "b"]
    assert out.reasons() == {"a": "duplicate key"}


def test_a_partition_that_is_not_whole_is_one_reject(tmp_path: Path) -> None:
    for number in range(6):
        write_partition(tmp_path, number, 5)
    short = tmp_path / "img_emb/img_emb_1.npy"
    short.write_bytes(short.read_bytes()[:-4])
    np.save(tmp_path / "text_emb/text_emb_2.npy", features(4, 6))
    np.save(tmp_path / "text_emb/text_emb_3.npy", features(5, 7))
    (tmp_path / "metadata/metadata_4.parquet").unlink()
    (tmp_path / "img_emb/img_emb_5.npy").write_bytes(b"nothing")
    out = import_into(tmp_path / "out", Embeddings(folder_of(tmp_path)))
    assert len(out.rows) == 5
    assert out.ledger.rejects == {"broken partition": 5}
    errors = " ".join(reject["error"] for reject in out.rejects)
    for part in (
        "cut short",
        "equal rows, got",
        "must have 6 features, got 7",
        "no metadata",
        "no .npy file",
    ):
        assert part in errors


def test_features_that_are_not_finite_are_rejects(tmp_path: Path) -> None:
    values = features(3, 4)
    values[1, 2] = np.nan
    np.save(tmp_path / "img_emb_0.npy", values)
    out = import_into(tmp_path / "out", Embeddings(folder_of(tmp_path)))
    assert out.reasons() == {"0-000000001": "feature not finite"}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"must be \(rows, features\) floats, got float64 \(4,\)"),
        (np.zeros((2, 2), dtype=np.int64), r"floats, got int64"),
        (np.asfortranarray(np.zeros((2, 3))), r"in Fortran order"),
        (np.array([[{}]], dtype=object), r"floats, got object"),
        (
            None,
            r"no img_emb_0.npy and no text_emb_0.npy, here or in folders below; expected the output of clip",
        ),
    ],
)
def test_another_layout_is_one_clear_line(array: Any, message: str, tmp_path: Path) -> None:
    if array is not None:
        np.save(tmp_path / "img_emb_0.npy", array)
    with pytest.raises(ValueError, match=message):
        Embeddings(folder_of(tmp_path))
