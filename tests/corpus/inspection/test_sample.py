"""A sample of rows: which, what became of them, and the sheet that shows them."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.corpus.inspection.layout import read_layout
from pipeline.corpus.inspection.sample import Sample, SampledRow, draw_sample, plan_spots
from pipeline.corpus.inspection.sheet import render_sheet
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import Columns
from tests.corpus.importers.sources import features, picture


class Groups:
    """A layout of row groups with given rows, all in one file."""

    def __init__(self, rows: list[int], stored: int = 1) -> None:
        self.rows, self.stored = rows, stored

    def groups(self) -> Any:
        footer = type("Footer", (), {"path": "a.parquet"})
        return iter([(footer, number, rows, self.stored) for number, rows in enumerate(self.rows)])


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 300), st.integers(1, 25))
def test_spots_lie_inside_their_row_groups_and_never_share_a_row(
    rows: list[int], wanted: int, spots: int
) -> None:
    planned = plan_spots(Groups(rows), wanted, spots=spots)  # type: ignore[arg-type]
    starts = np.cumsum([0, *rows])
    taken = [starts[s.group] + s.offset + i for s in planned for i in range(s.count)]
    assert all(s.offset + s.count <= rows[s.group] for s in planned)
    assert all(starts[s.group] + s.offset == s.first_row for s in planned)
    assert len(set(taken)) == len(taken)
    assert min(wanted, sum(rows)) - spots <= len(taken) <= min(wanted, sum(rows))
    if wanted >= sum(rows):
        assert taken == list(range(sum(rows)))


def test_of_a_row_group_too_large_to_read_whole_the_first_rows_are_taken() -> None:
    planned = plan_spots(Groups([10_000], stored=1 << 30), 500)  # type: ignore[arg-type]
    assert {(spot.offset, spot.whole) for spot in planned} == {(0, False)}


def sample_of(folder: Path, recipe: InputRecipe, **options: Any) -> Sample:
    files = [(file.name, file.stat().st_size) for file in sorted(folder.glob("*.parquet"))]
    layout = read_layout(files, lambda path: pq.ParquetFile(folder / path), recipe.columns)
    return draw_sample(layout, lambda path: pq.ParquetFile(folder / path), recipe, **options)


def test_every_sampled_row_is_decoded_rejected_or_absent_and_shown_with_its_number(tmp_path: Path) -> None:
    images = [picture(n) for n in range(40)]
    images[7], images[9] = images[7][:200], None
    texts = [f"caption {n}" for n in range(40)]
    texts[11] = " "
    columns = {"key": [f"k{n}" for n in range(40)], "image": images, "text": texts, "url": ["u"] * 40}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=13)
    recipe = InputRecipe(columns=Columns(passthrough=("url",)), image_size=16)
    sample = sample_of(tmp_path, recipe, rows=500, shown=200)
    image, text = sample.trials["image"], sample.trials["text"]
    assert (image.read, image.decoded, image.absent) == (40, 38, 1)
    assert dict(image.rejects) == {"truncated image": 1}
    assert (text.decoded, dict(text.rejects)) == (39, {"empty text": 1})
    assert image.together().shape == (38, 16, 16, 3)
    assert [row.key for row in sample.rows] == columns["key"]
    assert [row.row for row in sample.rows] == list(range(40))
    assert sample.rows[7].faults["image"].startswith("truncated image: ")
    assert (sample.rows[9].image, sample.rows[9].faults) == (None, {})
    assert [row.text for row in sample.rows if row.text] == [text for text in texts if text != " "]
    assert sample.rows[3].passthrough == {"url": "u"}


def test_features_of_open_width_are_measured_by_the_first_row(tmp_path: Path) -> None:
    lists = pa.array([*features(5, 4).tolist(), [1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": range(6), "text_features": lists}), tmp_path / "a.parquet")
    trial = sample_of(tmp_path, InputRecipe()).trials["text"]
    assert trial.together().shape == (5, 4)
    assert dict(trial.rejects) == {"wrong feature width": 1}


def test_a_page_that_cannot_be_read_is_a_fault_and_not_the_end(tmp_path: Path) -> None:
    columns = {"key": [f"{n}" * 50 for n in range(200)], "text": [f"{n}" * 50 for n in range(200)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "a.parquet").write_bytes(bytes(data))
    sample = sample_of(tmp_path, InputRecipe())
    assert sample.faults
    assert sample.faults[0].startswith("a.parquet: row group 0: ")
    assert sample.trials["text"].decoded >= 100


def test_the_sheet_shows_each_picture_and_escapes_all_that_comes_from_the_data() -> None:
    hostile = '<script>alert("x")</script>'
    pixels = np.full((200, 200, 3), 90, dtype=np.uint8)
    rows = [
        SampledRow("a & b.parquet", 0, hostile, image=pixels, text=hostile, labels=[1]),
        SampledRow("b.parquet", 1, "", image=features(1, 5)[0], text=features(1, 3)[0]),
        SampledRow("b.parquet", 2, "k", faults={"image": f"damaged image: {hostile}"}),
    ]
    page = render_sheet(hostile, rows, facts={hostile: hostile}, trouble=[hostile], notes=[hostile])
    assert "<script" not in page
    assert "src=" not in page.replace('src="data:image/jpeg;base64,', "")
    assert page.index("b.parquet row 2") < page.index("a &amp; b.parquet row 0")
    (encoded,) = re.findall(r"base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (128, 128)
    assert "5 features from" in page
    assert "(no key)" in page
