"""Towers on picture networks of timm: as published, trained, saved whole. Skipped where it does not load."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import from_pretrained, save_pretrained
from cmh_models.method import HashMethod, Progress
from cmh_models.pretrained import fill_settings, load_weights
from cmh_models.towers import TowersConfig

try:
    import timm
except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises the latter
    pytest.skip(f"timm does not import here: {str(error).splitlines()[0]}", allow_module_level=True)

NETWORKS = ("test_resnet", "test_vit")
"""Their own for tests: stages of a convolutional network, and blocks of a transformer as maps."""
SCALE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 160, 160, 3), dtype=np.uint8)


def publish(folder: Path, architecture: str) -> Any:
    """Write a network as timm publishes one, and return it."""
    torch.manual_seed(3)
    network = timm.create_model(architecture, pretrained=False)
    # Statistics of a batch norm that has seen pictures: those of a new one hide whether they are used.
    for name, values in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values.uniform_(0.5, 1.5)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= SCALE
    (folder / "config.json").write_text(json.dumps(config))
    return network.eval()


def built(model: str, folder: Path | None, *, method: str = "jdsh", **options: Any) -> HashMethod:
    """Return a method with a tower of timm, its settings filled in, its weights those of the folder."""
    given = {"image": {"name": "timm", "model": model, "hidden": 8, **options}, "text": {"name": "bag"}}
    towers = TowersConfig.model_validate(given)
    filled = fill_settings(towers.image, "image", folder).model_dump(mode="json")
    torch.manual_seed(0)
    made = build_method({"name": method, "code_length": 16}, {"image": filled, "text": given["text"]})
    if folder is not None:
        load_weights(made, "image", folder)
    return made


@pytest.fixture(scope="module", params=NETWORKS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder, the network in it, and its name."""
    folder = tmp_path_factory.mktemp("published") / request.param
    return folder, publish(folder, request.param), request.param


def test_a_tower_describes_pictures_as_the_published_network_does(published: Any) -> None:
    folder, network, name = published
    tower: Any = built(name, folder).eval().image
    pixels = tower.collate(PIXELS)
    scaled = (pixels / 255 - torch.tensor(SCALE["mean"])) / torch.tensor(SCALE["std"])
    with torch.no_grad():
        last = network.forward_intermediates(scaled.permute(0, 3, 1, 2), norm=False)[1][-1]
        assert torch.allclose(tower.describe(pixels), last.mean((2, 3)), atol=1e-4)
    assert tower.image_size == 160


def test_all_of_it_learns_and_its_statistics_stay(published: Any) -> None:
    folder, _, name = published
    method = built(name, folder).train()
    before = {key: values.clone() for key, values in method.image.named_buffers()}
    kept = method.image.describe(method.collate("image", PIXELS)).clone()
    method.encode("image", method.collate("image", PIXELS)).square().sum().backward()
    weights = dict(method.image.named_parameters())
    assert not [key for key, weight in weights.items() if weight.requires_grad and weight.grad is None]
    assert all(torch.equal(before[key], values) for key, values in method.image.named_buffers())
    with torch.no_grad():
        for key, weight in weights.items():
            weight += key.startswith("backbone.")
    assert torch.equal(method.image.describe(method.collate("image", PIXELS)), kept)


@pytest.mark.parametrize("method", ["jdsh", "hsidhn"])
def test_checkpointed_activations_change_no_gradient(published: Any, method: str) -> None:
    folder, _, name = published
    plain, sparing = (built(name, folder, method=method).double().train() for _ in range(2))
    sparing.image.checkpoint_activations()
    batch = {"image": plain.collate("image", PIXELS), "labels": torch.eye(4)}
    batch["text"] = plain.collate("text", ["a", "b", "c", "d"])
    for made in (plain, sparing):
        torch.manual_seed(7)
        output = made(dict(batch), Progress(0, 0, 1))
        output["image"].square().sum().backward()
    expected = dict(plain.image.named_parameters())
    for key, weight in sparing.image.named_parameters():
        if expected[key].grad is not None:
            assert torch.allclose(weight.grad, expected[key].grad, rtol=1e-9, atol=1e-12), key


def test_a_saved_model_needs_no_folder_and_encodes_the_same(published: Any, tmp_path: Path) -> None:
    folder, _, name = published
    method = built(name, folder).eval()
    digest = save_pretrained(method, tmp_path / "a", card={})
    loaded = from_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = method.encode("image", method.collate("image", PIXELS))
        assert torch.equal(loaded.encode("image", loaded.collate("image", PIXELS)), expected)
    assert save_pretrained(loaded, tmp_path / "b", card={}) == digest


def test_random_weights_need_no_folder_at_all() -> None:
    assert built("test_resnet", None, weights="none").image.image_size == 224


def test_a_name_that_timm_does_not_know_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"towers.image: timm cannot build 'resnet_of_nobody'") as caught:
        built("resnet_of_nobody", None, weights="none")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_one_clear_line(tmp_path: Path) -> None:
    publish(tmp_path / "one", "test_resnet")
    publish(tmp_path / "other", "test_vit")
    publish(tmp_path / "wider", "test_byobnet")
    method = built("test_resnet", tmp_path / "one")
    for folder in ("other", "wider"):
        with pytest.raises(ValueError, match=r"towers.image: .* (lacks \d+ weights|do not fit)") as caught:
            load_weights(method, "image", tmp_path / folder)
        assert "\n" not in str(caught.value)
    before = torch.random.get_rng_state()
    load_weights(method, "image", tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), before), "what is drawn later is drawn as without them"
