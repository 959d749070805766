"""Towers on networks of transformers: read from a folder, trained, saved whole, a row's code its own."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import from_pretrained, save_pretrained, tower_fingerprint
from cmh_models.method import HashMethod, Progress
from cmh_models.pretrained import fill_settings, load_weights
from cmh_models.towers import TowersConfig
from tests.models.backbones import write_image_folder, write_text_folder

pytest.importorskip("transformers", reason="the extra `backbones` is not installed")

Folders = dict[str, Path]
TEXTS = ["a red boat", "two houses at night", "fish", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {"image": write_image_folder(root / "image"), "text": write_text_folder(root / "text")}


def towers(folders: Folders, **options: Any) -> dict[str, Any]:
    """Return the settings of both towers, filled in from their folders."""
    given = {
        side: {"name": "transformers", "model": str(folder), "hidden": 8, **options}
        for side, folder in folders.items()
    }
    given["text"]["max_tokens"] = 8
    config = TowersConfig.model_validate(given)
    return {
        side: fill_settings(getattr(config, side), side, folder).model_dump(mode="json")
        for side, folder in folders.items()
    }


def built(folders: Folders, *, method: str = "jdsh", start: bool = True, **options: Any) -> HashMethod:
    torch.manual_seed(0)
    own = {"classes": 4} if method == "dscmh" else {}
    made = build_method({"name": method, "code_length": 16, **own}, towers(folders, **options))
    for side, folder in folders.items():
        if start:
            load_weights(made, side, folder)
    return made


def values(side: str, rows: int = 4) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    return pixels if side == "image" else (TEXTS * rows)[:rows]


def test_a_tower_starts_from_the_weights_and_the_preprocessing_of_its_folder(
    folders: Folders,
) -> None:
    from transformers import BertModel, ViTModel

    method = built(folders).eval()
    pixels = method.collate("image", values("image"))
    scaled = (pixels / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.25])
    published = ViTModel.from_pretrained(folders["image"]).eval()
    with torch.no_grad():
        expected = published(pixel_values=scaled.permute(0, 3, 1, 2)).last_hidden_state.mean(1)
        assert torch.allclose(method.image.describe(pixels), expected, atol=1e-5)
        encoder = BertModel.from_pretrained(folders["text"]).eval()
        ids = torch.tensor([[2, 4, 5, 6, 3]])  # [CLS] a red boat [SEP], and no padding
        expected = encoder(input_ids=ids).last_hidden_state.mean(1)
        described = method.text.describe(method.collate("text", ["A RED boat"]))
        assert torch.allclose(described, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_padding_and_neighbours_change_no_text(folders: Folders, pooling: str) -> None:
    settings = towers(folders)
    settings["text"]["pooling"] = pooling
    torch.manual_seed(0)
    method = build_method({"name": "jdsh", "code_length": 16}, settings).eval()
    inputs = method.collate("text", TEXTS)
    assert inputs.shape == (4, 8), "the same width in any company"
    with torch.no_grad():
        codes = method.encode("text", inputs)
        assert torch.equal(method.encode("text", inputs.flip(0)).flip(0), codes)
        assert torch.allclose(method.encode("text", inputs[1:2]), codes[1:2], atol=1e-6)


def test_what_is_trained_learns_and_what_describes_stands_still(folders: Folders) -> None:
    method = built(folders)
    method.train()
    for side in ("image", "text"):
        network: Any = getattr(method, side)
        inputs = method.collate(side, values(side))
        method.encode(side, inputs).square().sum().backward()
        learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
        without = [name for name in learning if network.get_parameter(name).grad is None]
        assert not without
        assert not any(name.startswith("reference.") for name in learning)
        assert not network.reference.training
        before = network.describe(inputs)
        with torch.no_grad():
            for weight in network.backbone.parameters():
                weight += 1
        assert torch.equal(network.describe(inputs), before)


def test_a_frozen_backbone_trains_its_head_alone(folders: Folders) -> None:
    method = built(folders, trained=False)
    learning = {name for name, weight in method.named_parameters() if weight.requires_grad}
    assert learning
    assert all(".head." in name for name in learning)


def test_dropout_of_the_network_is_off_so_that_ranks_agree(folders: Folders) -> None:
    method = built(folders).train()
    inputs = method.collate("text", TEXTS)
    assert torch.equal(method.text(inputs), method.text(inputs))


@pytest.mark.parametrize("options", [{}, {"trained": False}, {"described_by": "plain"}])
def test_a_round_trip_needs_nothing_but_the_artefact(
    folders: Folders, options: dict[str, Any], tmp_path: Path
) -> None:
    method = built(folders, **options).eval()
    digest = save_pretrained(method, tmp_path / "a", card={})
    assert not list((tmp_path / "a").glob("*.bin"))
    kept = json.loads((tmp_path / "a" / "tokeniser.json").read_text())
    assert "boat" in kept["text"]["model"]["vocab"]
    assert "vocabulary" not in (tmp_path / "a" / "config.json").read_text().replace('"vocabulary": null', "")
    preprocessing = json.loads((tmp_path / "a" / "preprocessing.json").read_text())
    assert preprocessing["image"]["image_size"] == 16
    assert preprocessing["image"]["tower"]["mean"] == [0.4, 0.5, 0.6]
    loaded = from_pretrained(tmp_path / "a")
    assert loaded.spec == method.spec
    for side in ("image", "text"):
        inputs = method.collate(side, values(side))
        with torch.no_grad():
            assert torch.equal(
                loaded.encode(side, loaded.collate(side, values(side))), method.encode(side, inputs)
            )
        assert tower_fingerprint(loaded, side) == tower_fingerprint(method, side)
    assert save_pretrained(loaded, tmp_path / "b", card={}) == digest


def test_the_fingerprint_changes_with_the_tokeniser_and_not_with_where_weights_came_from(
    folders: Folders,
) -> None:
    method = built(folders)
    before = tower_fingerprint(method, "text")
    settings = towers(folders)

    def fingerprint(**changed: Any) -> str:
        torch.manual_seed(0)
        made = build_method(
            {"name": "jdsh", "code_length": 16}, settings | {"text": settings["text"] | changed}
        )
        made.load_state_dict(method.state_dict())
        return tower_fingerprint(made, "text")

    assert fingerprint(model="elsewhere") == before
    other = settings["text"]["vocabulary"].replace('"boat"', '"ship"')
    assert fingerprint(vocabulary=other) != before
    assert fingerprint(max_tokens=9) != before


@pytest.mark.parametrize("method", ["jdsh", "djsrh", "hsidhn", "dscmh", "dbrc"])
def test_every_method_takes_backbones(folders: Folders, method: str) -> None:
    made = built(folders, method=method).train()
    labels = torch.eye(4)
    batch = {side: made.collate(side, values(side)) for side in ("image", "text")} | {"labels": labels}
    output = made(batch, Progress(0, 0, 1))
    (output["image"].sum() + output["text"].sum()).backward()
    learnt = [
        name for name, weight in made.named_parameters() if weight.grad is not None and "backbone" in name
    ]
    assert any(name.startswith("image.") for name in learnt)
    assert any(name.startswith("text.") for name in learnt)


@pytest.mark.parametrize("method", ["jdsh", "hsidhn"])
def test_checkpointed_activations_change_neither_values_nor_gradients(folders: Folders, method: str) -> None:
    plain, sparing = (built(folders, method=method, dropout=0.3).double().train() for _ in range(2))
    for side in ("image", "text"):
        getattr(sparing, side).checkpoint_activations()
        gradients = []
        for made in (plain, sparing):
            torch.manual_seed(7)
            codes = made.encode(side, made.collate(side, values(side)))
            codes.square().sum().backward()
            gradients.append(
                {n: w.grad for n, w in getattr(made, side).named_parameters() if w.grad is not None}
            )
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            assert torch.allclose(gradients[1][name], gradient, rtol=1e-12, atol=1e-14), name


def test_layers_keep_less_for_the_way_back_when_their_activations_are_checkpointed(
    folders: Folders,
) -> None:
    def saved(checkpointed: bool) -> int:
        method = built(folders).train()
        if checkpointed:
            method.image.checkpoint_activations()
        kept = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            method.encode("image", method.collate("image", values("image")))
        return kept

    assert saved(True) < saved(False) / 2


@pytest.mark.parametrize(
    ("side", "damage", "message"),
    [
        ("image", "config.json", r"towers.image: cannot read .*config.json"),
        ("text", "tokenizer.json", r"towers.text: cannot read .*tokenizer.json"),
    ],
)
def test_a_folder_without_a_file_is_refused_by_its_name(
    folders: Folders, tmp_path: Path, side: str, damage: str, message: str
) -> None:
    writer = write_image_folder if side == "image" else write_text_folder
    folder = writer(tmp_path / "model")
    (folder / damage).unlink()
    with pytest.raises(ValueError, match=message):
        towers(folders | {side: folder})


def test_weights_that_are_pickles_or_of_another_network_are_refused(folders: Folders, tmp_path: Path) -> None:
    method = built(folders, start=False)
    folder = write_image_folder(tmp_path / "wider", num_hidden_layers=3)
    deeper = build_method({"name": "jdsh", "code_length": 16}, towers(folders | {"image": folder}))
    with pytest.raises(ValueError, match=r"towers.image: .* lacks \d+ weights of the network"):
        load_weights(deeper, "image", folders["image"])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no \*.safetensors"):
        load_weights(method, "image", folder)


def test_settings_that_contradict_the_model_are_refused(folders: Folders) -> None:
    tower = {"name": "transformers", "model": str(folders["image"]), "image_size": 32}
    settings = TowersConfig.model_validate({"image": tower}).image
    with pytest.raises(ValueError, match=r"towers.image.image_size is 32 but the backbone takes 16"):
        fill_settings(settings, "image", folders["image"])
    with pytest.raises(ValueError, match="leave described_by out"):
        TowersConfig.model_validate({"image": tower | {"trained": False, "described_by": "plain"}})
    with pytest.raises(ValueError, match=r"config of the transformers tower .* is not filled in"):
        build_method({"name": "jdsh"}, {"image": tower})


def test_a_model_that_wants_its_own_code_run_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoModel": "theirs.Model", "AutoConfig": "theirs.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text("raise SystemExit('the code of a model was run')")
    with pytest.raises(ValueError, match=r"towers.image: .*config.json: .*theirs"):
        towers(folders | {"image": folder})


@pytest.mark.parametrize("package", ["transformers", "timm"])
def test_a_missing_package_is_named_with_what_to_install(
    folders: Folders, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = towers(folders)["image"] | {
        "name": package,
        "config": {"architecture": "resnet18", "model_type": "vit"},
    }
    if package == "timm":
        del tower["pooling"]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} cannot be imported here .*hashfleet\[backbones\]"):
        build_method({"name": "jdsh"}, {"image": tower})
