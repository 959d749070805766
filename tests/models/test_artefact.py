"""A model as a folder: the same codes after a round trip, one name for one model, no pickle in it."""

import json
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import artefact_digest, from_pretrained, save_pretrained, tower_fingerprint
from cmh_models.method import HashMethod

TOWERS = [
    {},
    {"image": {"name": "cnn", "image_size": 16, "channels": [8, 12], "hidden": 8}},
    {"image": {"name": "features", "width": 5}, "text": {"name": "features", "width": 4}},
]


def built(towers: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> HashMethod:
    torch.manual_seed(seed)
    return build_method({"name": "jdsh", "code_length": 16, **options}, towers or {})


def values(method: HashMethod) -> dict[str, Any]:
    """Return decoded values of three rows for both sides."""
    generator = np.random.default_rng(0)
    if method.image_size is None:
        return {"image": generator.normal(size=(3, 5)), "text": generator.normal(size=(3, 4))}
    pixels = generator.integers(0, 256, (3, method.image_size, method.image_size, 3), dtype=np.uint8)
    return {"image": pixels, "text": ["a red boat", "two houses at night", "fish"]}


@pytest.mark.parametrize("towers", TOWERS)
def test_a_round_trip_gives_bit_equal_codes_and_the_same_digest(towers: dict, tmp_path: Path) -> None:
    method = built(towers).eval()
    digest = save_pretrained(method, tmp_path / "a", card={})
    loaded = from_pretrained(tmp_path / "a")
    assert loaded.spec == method.spec
    assert not loaded.training
    for side, rows in values(method).items():
        ours = method.encode(side, method.collate(side, rows))
        assert torch.equal(loaded.encode(side, loaded.collate(side, rows)), ours)
        assert tower_fingerprint(loaded, side) == tower_fingerprint(method, side)
    assert save_pretrained(loaded, tmp_path / "b", card={}) == digest == artefact_digest(tmp_path / "b")


def test_the_card_is_no_part_of_the_digest_and_can_be_renewed(tmp_path: Path) -> None:
    method = built()
    first = save_pretrained(method, tmp_path / "m", card={"metrics": {"map_i2t": 0.5}})
    second = save_pretrained(method, tmp_path / "m", card={"metrics": {"map_i2t": 0.6}})
    assert first == second
    assert "| map_i2t | 0.6 |" in (tmp_path / "m" / "README.md").read_text()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    save_pretrained(built(seed=0), tmp_path / "m", card={})
    digest = artefact_digest(tmp_path / "m")
    with pytest.raises(FileExistsError, match="holds something else"):
        save_pretrained(built(seed=1), tmp_path / "m", card={})
    assert artefact_digest(tmp_path / "m") == digest
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "nothing half-written stays"


def test_no_file_of_an_artefact_is_a_pickle(tmp_path: Path) -> None:
    save_pretrained(built(), tmp_path / "m", card={})
    for file in (tmp_path / "m").iterdir():
        with pytest.raises(ValueError):
            list(pickletools.genops(file.read_bytes()))


def test_the_fingerprint_of_a_side_changes_with_that_side_alone() -> None:
    method = built()
    before = {side: tower_fingerprint(method, side) for side in ("image", "text")}
    with torch.no_grad():
        method.text.head.weight[0, 0] += 1
    assert tower_fingerprint(method, "image") == before["image"]
    assert tower_fingerprint(method, "text") != before["text"]
    method.image.standardiser.mean[3] += 1
    assert tower_fingerprint(method, "image") != before["image"]


def test_the_fingerprint_changes_with_precision_device_and_preprocessing() -> None:
    method = built()
    prints = {
        tower_fingerprint(method, "image"),
        tower_fingerprint(method, "text"),
        tower_fingerprint(method, "image", precision="bf16"),
        tower_fingerprint(method, "image", device="cuda"),
        tower_fingerprint(built({"image": {"name": "descriptor", "image_size": 32}}), "image"),
    }
    assert len(prints) == 5
    assert tower_fingerprint(built(intra_weight=0.7), "image") in prints, "a loss weight is not in the codes"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessing.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    save_pretrained(built(), tmp_path / "m", card={})
    (tmp_path / "m" / name).unlink()
    with pytest.raises(ValueError, match=f"it has no {name}"):
        artefact_digest(tmp_path / "m")


def test_a_folder_that_is_no_artefact_a_newer_one_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no model artefact: it has no config.json"):
        from_pretrained(tmp_path)
    folder = tmp_path / "m"
    save_pretrained(built(), folder, card={})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ValueError, match=r"has format 99, this version reads up to 1"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        from_pretrained(folder)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_pretrained(built(), folder, card={})
    config = json.loads((folder / "config.json").read_text())
    config["method"]["code_length"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config.json: .*size mismatch"):
        from_pretrained(folder)
