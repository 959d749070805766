"""A model is put into a store once and found again by its digest, its folder or its URI."""

from pathlib import Path

import pytest
import torch

from cmh_models.artefact import save_pretrained
from cmh_models.method import HashMethod
from pipeline.encoding.models import artefact, keep_model, load_encoder, open_model
from pipeline.releases.storage import Storage
from tests.encoding.sources import tiny_method


def same(a: HashMethod, b: HashMethod) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(tiny_method(), path, card={})
    return path


def test_a_kept_model_is_found_by_its_digest(tmp_path: Path, folder: Path) -> None:
    store = Storage(tmp_path)
    digest = keep_model(folder, store)
    assert {Path(path).name for path in store.list(f"models/{digest}")} == {
        path.name for path in folder.iterdir()
    }
    assert same(load_encoder(digest, store), tiny_method())


def test_keeping_a_model_again_writes_nothing(tmp_path: Path, folder: Path) -> None:
    store = Storage(tmp_path)
    digest = keep_model(folder, store)
    before = {path: store.stat(path) for path in store.list()}
    assert keep_model(folder, store) == digest
    assert {path: store.stat(path) for path in store.list()} == before


def test_a_model_whose_upload_was_cut_off_is_completed(tmp_path: Path, folder: Path) -> None:
    store = Storage(tmp_path)
    digest = keep_model(folder, store)
    for name in ("config.json", "model.safetensors"):
        store.delete(f"models/{digest}/{name}")
    assert keep_model(folder, store) == digest
    assert same(open_model(digest, store), tiny_method())


def test_a_model_is_opened_from_its_folder_and_from_its_uri(folder: Path) -> None:
    assert same(open_model(str(folder)), tiny_method())
    assert same(open_model(folder.as_uri()), tiny_method())


@pytest.mark.parametrize("reference", ["nowhere", "0" * 32, "file:///nowhere/model"])
def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ValueError, match=r"no model at .*encode\.model takes an artefact folder"):
        open_model(reference, Storage(tmp_path))


def test_a_model_on_s3_is_brought_for_as_long_as_it_is_used(s3_server: str, folder: Path) -> None:
    store = Storage(f"{s3_server}/models-test")
    digest = keep_model(folder, store)
    with artefact(digest, store) as local:
        assert (local / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not local.exists()
    assert same(open_model(f"{store.uri}/models/{digest}"), tiny_method())


def test_a_gpu_asked_for_and_absent_is_said(tmp_path: Path, folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    store = Storage(tmp_path)
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        load_encoder(keep_model(folder, store), store, gpu=True)
