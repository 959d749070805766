"""Training from pretrained towers, from folder to artefact to codes; and how weights reach a node."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmh_models.artefact import from_pretrained
from cmh_models.towers import TowersConfig
from jobs.training import pretrained
from pipeline.corpus.scenes import write_corpus
from pipeline.encoding.encoder import encode_side
from pipeline.releases.storage import Storage
from tests.jobs.training import run
from tests.models.backbones import write_image_folder, write_text_folder

pytest.importorskip("transformers", reason="the extra `backbones` is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {"image": write_image_folder(root / "image"), "text": write_text_folder(root / "text")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    write_corpus(folder, 64, 64, 3, split="train")
    return folder


def towers(folders: dict[str, Path]) -> list[str]:
    """Return the `--set` values of both towers."""
    shared = {"name": "transformers", "hidden": 8}
    own: dict[str, dict[str, Any]] = {"image": {}, "text": {"max_tokens": 8}}
    return [
        f"towers.{side}={json.dumps(shared | own[side] | {'model': str(folder)})}"
        for side, folder in folders.items()
    ]


def test_a_run_from_pretrained_towers_ends_in_a_model_that_needs_their_folders_no_more(
    folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    mine = {"image": write_image_folder(tmp_path / "image"), "text": write_text_folder(tmp_path / "text")}
    settings = (*towers(mine), "resources.workers=0", "train.activation_checkpointing=true")
    result = run(source, tmp_path / "runs", *settings)
    for folder in mine.values():
        folder.rename(folder.with_name(f"{folder.name}-gone"))
    model = from_pretrained(Path(result.outputs["model"]))
    started = from_pretrained_weights(folders)
    moved = model.image.backbone.get_parameter("layernorm.weight") - started["layernorm.weight"]
    assert float(moved.detach().abs().max()) > 0, "the backbone was trained"
    kept = model.image.reference.get_parameter("layernorm.weight")
    assert torch.equal(kept, started["layernorm.weight"]), "what describes pictures stayed as it came"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    codes = encode_side(model, "image", pixels)
    assert np.array_equal(codes[2:], encode_side(model, "image", pixels[2:]))
    texts = ["a red boat", "fish", "two houses at night"]
    codes = encode_side(model, "text", texts)
    assert np.array_equal(codes[1:], encode_side(model, "text", texts[1:]))


def from_pretrained_weights(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folders["image"] / "model.safetensors")


def test_a_run_goes_on_without_reading_the_weights_again(
    folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    mine = {"image": write_image_folder(tmp_path / "image"), "text": write_text_folder(tmp_path / "text")}
    settings = (*towers(mine), "resources.workers=0")
    run(source, tmp_path / "runs", *settings, "train.epochs=1")
    for folder in mine.values():
        (folder / "model.safetensors").unlink()
    result = run(source, tmp_path / "runs", *settings, "train.epochs=2")
    assert result.counts["steps"] == 8
    assert result.counts["steps_now"] == 4
    index = next((tmp_path / "runs").rglob("checkpoint.json"))
    assert "boat" not in index.read_text(), "a tokeniser is named by its digest"


def test_weights_on_object_storage_reach_a_node_once(
    folders: dict[str, Path], s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = f"{s3_server}/pretrained/tiny"
    Storage(f"{s3_server}/pretrained").upload_folder(folders["image"], "tiny")
    first = pretrained.bring(uri, "towers.image.weights", pretrained.WEIGHTS)
    assert (first / "model.safetensors").read_bytes() == (folders["image"] / "model.safetensors").read_bytes()
    (first / "mark").touch()
    again = pretrained.bring(uri, "towers.image.weights", pretrained.WEIGHTS)
    assert again == first
    assert (again / "mark").exists(), "not brought a second time"
    Storage(uri).write("config.json", b"{}")
    assert pretrained.bring(uri, "towers.image.weights", pretrained.WEIGHTS) != first, "another model by now"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/nowhere/at/all", r"towers.text.model: no folder at /nowhere/at/all"),
        (
            "nobody/nothing",
            r"towers.text.model: 'nobody/nothing' is no folder here, and HF_HUB_OFFLINE keeps the hub from",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_one_clear_line(
    reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = TowersConfig.model_validate({"text": {"name": "transformers", "model": reference}})
    with pytest.raises(ValueError, match=message) as caught:
        pretrained.fill_towers(config)
    assert "\n" not in str(caught.value)


def test_fp16_on_cpus_is_refused_before_anything_starts(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.precision fp16 needs resources.gpu=true"):
        run(source, tmp_path, "resources.workers=0", "train.precision=fp16")
