"""Stages as rows: decoded here or in a stage before, finished here or by another, code files are the same."""

from pathlib import Path

import pytest

from cmh_models.artefact import save_pretrained
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.decoding import Receipt, Source
from pipeline.encoding.models import keep_model
from pipeline.encoding.rows import EncodeRow, answer_of, chunk_row, decode_row, receipt_of
from pipeline.encoding.units import UnitReport, UnitWork, finish_unit, open_unit
from pipeline.releases.forgetting import NOTHING_FORGOTTEN
from pipeline.releases.storage import Storage
from tests.encoding.sources import BAD_ROWS, tiny_method, write_rows
from tests.encoding.test_units import FILES


def model_and_unit(folder: Path, store: Storage) -> tuple[str, Source, UnitWork]:
    """Keep a model in a store; return its digest, a source of one unit, and that unit."""
    save_pretrained(tiny_method(), folder / "model", card={})
    path = write_rows(folder / "source" / "u.parquet", BAD_ROWS)
    source = Source(Storage(path.parent), InputRecipe(image_size=16))
    return keep_model(folder / "model", store), source, UnitWork(source.root.stat(path.name), FILES)


def test_one_stage_and_two_stages_give_the_same_code_files(tmp_path: Path) -> None:
    models = Storage(tmp_path / "models")
    digest, source, unit = model_and_unit(tmp_path, models)
    work = open_unit(unit, source)
    [row] = [chunk_row(chunk, work) for chunk in work.chunks]
    receipts = {
        "one": EncodeRow(digest, models, tile=8, source=source)(row),
        "two": EncodeRow(digest, models, tile=8)(decode_row(row, source, models)),
    }
    stores = {name: Storage(tmp_path / name) for name in receipts}
    reports = {
        name: finish_unit(work, [receipt_of(receipts[name])], source=source, store=store)
        for name, store in stores.items()
    }
    stores["at once"] = Storage(tmp_path / "at once")
    keep_model(tmp_path / "model", stores["at once"])
    at_once = EncodeRow(digest, stores["at once"], tile=8, source=source, forgotten=NOTHING_FORGOTTEN)
    report = answer_of(at_once(row))
    assert isinstance(report, UnitReport)
    assert report == reports["one"]
    files = stores["one"].list()
    assert files == stores["two"].list() != []
    assert set(files) < set(stores["at once"].list())  # its model stands there, too
    for file in files:
        assert stores["one"].read(file) == stores["two"].read(file) == stores["at once"].read(file)


def test_a_chunk_of_several_is_never_finished_alone(tmp_path: Path) -> None:
    store = Storage(tmp_path / "store")
    digest, source, unit = model_and_unit(tmp_path, store)
    work = open_unit(unit, source, max_bytes=1, join=False)
    assert len(work.chunks) > 1
    encode = EncodeRow(digest, store, tile=8, source=source, forgotten=NOTHING_FORGOTTEN)
    answers = [answer_of(encode(chunk_row(chunk, work))) for chunk in work.chunks]
    assert [answer.chunk for answer in answers if isinstance(answer, Receipt)] == list(work.chunks)


def test_a_model_that_is_not_in_the_store_ends_the_stage_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        EncodeRow("0" * 32, Storage(tmp_path), tile=8)
