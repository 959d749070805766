"""The feed of a rank: the rows of the plan, decoded, with and without Ray, cached or not."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.corpus.dataset import (
    Decoded,
    DecodeWithRay,
    Feed,
    FeedConfig,
    Piece,
    PieceReader,
    decode_here,
    multi_hot,
)
from pipeline.corpus.decode import InputRecipe
from pipeline.corpus.listing import Listing, Selection, held_out, list_pairs
from pipeline.corpus.plan import EpochPlan
from pipeline.corpus.schema import Columns, SchemaError, sample_ids

FILES = pyarrow.fs.LocalFileSystem()
ROWS, BATCH = 90, 24


def picture(n: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (n, 255 - n, n // 2)).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema(
        {
            "key": pa.string(),
            "image": pa.binary(),
            "text": pa.string(),
            "labels": pa.list_(pa.int32()),
            "split": pa.string(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=20)


def row(n: int, **changed: Any) -> dict[str, Any]:
    good = {"key": f"k{n}", "image": picture(n), "text": f"text {n}", "labels": [n % 3, 4], "split": "train"}
    return good | changed


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for part in range(3):
        write(tmp_path / f"{part}.parquet", [row(n) for n in range(part * 30, part * 30 + 30)])
    return tmp_path


def listed(folder: Path, **options: Any) -> Listing:
    paths = [str(file) for file in sorted(folder.glob("*.parquet"))]
    selection = Selection(options.pop("splits", ("train",)), options.pop("held_out", 0.0))
    labels = options.pop("labels", True)
    return list_pairs(paths, FILES, columns=Columns(), selection=selection, labels=labels, **options)


def feed(listing: Listing, **options: Any) -> Feed:
    reader = PieceReader(FILES, InputRecipe(image_size=8), listing.classes)
    cache = options.pop("cache_bytes", 1 << 20)
    return Feed(listing, reader, FeedConfig(seed=3, global_batch_size=BATCH, cache_bytes=cache), **options)


def keys(batches: Iterator[dict[str, np.ndarray]]) -> list[list[str]]:
    return [batch["key"].tolist() for batch in batches]


def test_the_feed_yields_the_rows_of_the_plan_decoded(corpus: Path) -> None:
    listing = listed(corpus)
    assert (listing.rows, listing.classes) == (ROWS, 5)
    plan = EpochPlan(listing.counts, seed=3, epoch=1, global_batch_size=BATCH)
    wanted = np.concatenate(list(plan.windows()))
    batches = list(feed(listing).epoch(1))
    assert [n for batch in keys(iter(batches)) for n in batch] == [f"k{n}" for n in wanted]
    for n, value, text, labels in zip(
        wanted,
        np.concatenate([batch["image"] for batch in batches]),
        np.concatenate([batch["text"] for batch in batches]),
        np.concatenate([batch["labels"] for batch in batches]),
        strict=True,
    ):
        assert (value == (n, 255 - n, n // 2)).all() and text == f"text {n}"
        assert np.flatnonzero(labels).tolist() == sorted({n % 3, 4})


def test_labels_are_left_out_unless_asked_for(corpus: Path) -> None:
    assert all(
        set(batch) == {"key", "image", "text"} for batch in feed(listed(corpus, labels=False)).epoch(0)
    )


@pytest.mark.parametrize("cache_bytes", [0, 40 * 300, 1 << 20])
def test_batches_are_the_same_whatever_the_cache_holds(corpus: Path, cache_bytes: int) -> None:
    listing = listed(corpus)
    plain, cached = feed(listing, cache_bytes=0), feed(listing, cache_bytes=cache_bytes)
    for epoch in (0, 0, 1, 2):
        for mine, theirs in zip(plain.epoch(epoch), cached.epoch(epoch), strict=True):
            for name, values in mine.items():
                np.testing.assert_array_equal(values, theirs[name])


def test_rows_that_all_fit_in_memory_are_decoded_once(corpus: Path) -> None:
    decoded: list[int] = []

    def counting(reader: PieceReader, pieces: Sequence[Piece]) -> Iterable[Decoded]:
        decoded.extend(len(piece.rows) for piece in pieces)
        return decode_here(reader, pieces)

    listing = listed(corpus)
    half = feed(listing, rank=1, ranks=2, decode=counting)
    for epoch in range(3):
        list(half.epoch(epoch))
    assert sum(decoded) == ROWS
    decoded.clear()
    tight = feed(listing, rank=1, ranks=2, decode=counting, cache_bytes=20 * 300)
    for epoch in range(3):
        list(tight.epoch(epoch))
    own = 3 * BATCH // 2
    assert 2 * own < sum(decoded) < 3 * own  # the own half in every epoch, but for what is kept


def test_ranks_share_each_global_batch_and_go_on_from_any_step(corpus: Path) -> None:
    listing = listed(corpus)
    whole = keys(feed(listing).epoch(0))
    halves = [keys(feed(listing, rank=rank, ranks=2).epoch(0, 1)) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole[1:]


def test_a_row_that_does_not_decode_is_replaced_by_the_next_good_one_of_its_chunk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {4: {"image": picture(4)[:40]}, 5: {"text": "  "}, 19: {"image": b"no picture"}}
    write(tmp_path / "a.parquet", [row(n, **broken.get(n, {})) for n in range(24)])
    listing = listed(tmp_path)
    assert listing.rows == 24  # damage is not seen from the footer
    for ranks in (1, 2):
        feeds = [feed(listing, rank=rank, ranks=ranks, cache_bytes=0) for rank in range(ranks)]
        found = [key for part in feeds for batch in keys(part.epoch(0)) for key in batch]
        assert sum(part.replaced.total() for part in feeds) == 3
        assert sorted(found, key=lambda key: int(key[1:])) == sorted(
            [f"k{n}" for n in range(24) if n not in broken] + ["k6", "k6", "k0"], key=lambda key: int(key[1:])
        )
    assert "neighbours stood in" in caplog.text


def test_a_chunk_without_a_good_row_is_an_error_that_says_where(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(n, image=b"no") for n in range(24)])
    with pytest.raises(ValueError, match=r"a\.parquet: none of 20 rows of row group 0 can be decoded"):
        list(feed(listed(tmp_path)).epoch(0))


def test_only_complete_pairs_of_the_wanted_split_are_listed(tmp_path: Path) -> None:
    changes = {0: {"image": None}, 1: {"text": None}, 2: {"split": "query"}, 3: {"split": None}}
    write(tmp_path / "a.parquet", [row(n, **changes.get(n, {})) for n in range(40)])
    listing = listed(tmp_path)
    assert listing.rows == 36
    assert listing.dropped == {"not a pair": 2, "other split": 2}
    assert {key for batch in keys(feed(listing).epoch(0)) for key in batch} <= {f"k{n}" for n in range(4, 40)}
    assert listed(tmp_path, splits=None).rows == 38


def test_the_held_out_share_is_drawn_by_key(corpus: Path) -> None:
    everyone = [f"k{n}" for n in range(ROWS)]
    out = {key for key, is_out in zip(everyone, held_out(sample_ids(everyone), 0.25), strict=True) if is_out}
    listing = listed(corpus, held_out=0.25)
    assert listing.rows == ROWS - len(out) and 0 < len(out) < ROWS / 2
    assert not out & {key for batch in keys(feed(listing).epoch(0)) for key in batch}


def test_too_few_rows_are_refused_with_the_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(n, split="query" if n else "train") for n in range(5)])
    with pytest.raises(
        ValueError, match=r"1 pairs to train on \(rows left out: 4 other split\), fewer .* 24"
    ):
        listed(tmp_path).require(BATCH, where="corpus")


def test_a_missing_column_names_what_was_found(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "image": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="found: key, image"):
        listed(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet"):
        listed(tmp_path)


def test_a_row_group_that_is_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, [row(n) for n in range(24)])
    listing = listed(tmp_path)
    data = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.parquet, row group 0: cannot be read: .+"):
        list(feed(listing).epoch(0))


def test_multi_hot_labels_allow_rows_without_any() -> None:
    labels = [np.array([0, 2]), np.array([], dtype=np.int64)]
    np.testing.assert_array_equal(multi_hot(labels, 3), [[1, 0, 1], [0, 0, 0]])


@pytest.mark.ray
def test_ray_data_yields_the_same_bytes_in_the_same_order(
    corpus: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.dataset.START_SECONDS", 0.0)
    listing = listed(corpus)
    here, there = feed(listing, decode=decode_here), feed(listing, decode=DecodeWithRay())
    for mine, theirs in zip(here.epoch(0), there.epoch(0), strict=True):
        for name, values in mine.items():
            np.testing.assert_array_equal(values, theirs[name])
