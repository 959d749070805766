"""Stages as rows: decoded here or in a stage before, a receipt is the same."""

from pathlib import Path

import pytest

from cmh_models.artefact import save_pretrained
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.decoding import Source
from pipeline.encoding.models import keep_model
from pipeline.encoding.rows import EncodeRow, chunk_row, decode_row, receipt_of
from pipeline.encoding.units import UnitWork, finish_unit, open_unit
from pipeline.releases.storage import Storage
from tests.encoding.sources import BAD_ROWS, tiny_method, write_rows
from tests.encoding.test_units import FILES


def test_one_stage_and_two_stages_give_the_same_code_files(tmp_path: Path) -> None:
    save_pretrained(tiny_method(), tmp_path / "model", card={})
    models = Storage(tmp_path / "models")
    digest = keep_model(tmp_path / "model", models)
    path = write_rows(tmp_path / "source" / "u.parquet", BAD_ROWS)
    source = Source(Storage(path.parent), InputRecipe(image_size=16))
    work = open_unit(UnitWork(source.root.stat(path.name), FILES), source)
    [row] = [chunk_row(chunk, work) for chunk in work.chunks]
    receipts = {
        "one": EncodeRow(digest, models, tile=8, source=source)(row),
        "two": EncodeRow(digest, models, tile=8)(decode_row(row, source, models)),
    }
    stores = {name: Storage(tmp_path / name) for name in receipts}
    for name, store in stores.items():
        finish_unit(work, [receipt_of(receipts[name])], source=source, store=store)
    assert stores["one"].list() == stores["two"].list() != []
    for file in stores["one"].list():
        assert stores["one"].read(file) == stores["two"].read(file)


def test_a_model_that_is_not_in_the_store_ends_the_stage_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        EncodeRow("0" * 32, Storage(tmp_path), tile=8)
