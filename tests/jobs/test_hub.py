"""Backbones by their names on the hub: its own client, against a server that answers as the hub does."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import from_pretrained, tower_fingerprint
from cmh_models.towers import TowersConfig
from jobs.training.pretrained import fill_towers, start_from_pretrained
from pipeline.corpus.scenes import write_corpus
from tests.hub import TOKEN, Hub, running_hub
from tests.jobs.training import run
from tests.learning.conftest import ranks  # noqa: F401
from tests.learning.ranks import Ranks
from tests.models.backbones import write_image_folder, write_text_folder

pytest.importorskip("transformers", reason="the extra `backbones` is not installed")

READ = {"config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"}
SIDES = ("image", "text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with what else a repository holds: a pickle of the weights, code, a page."""
    root = tmp_path_factory.mktemp("published")
    found = {"image": write_image_folder(root / "image"), "text": write_text_folder(root / "text")}
    for folder in found.values():
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "modeling.py").write_text("raise SystemExit('code of a repository was run')")
        (folder / "README.md").write_text("# A model")
    return found


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that has both models under `tiny/`; this process asks it, and has asked for nothing yet."""
    with running_hub({f"tiny/{side}": folder for side, folder in folders.items()}) as started:
        ask(started.endpoint, tmp_path / "hub", monkeypatch)
        yield started


def ask(endpoint: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Have this process ask one hub and keep its files in one place: what HF_ENDPOINT and HF_HOME do."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", endpoint)
    files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


def tower(side: str, model: str) -> dict[str, Any]:
    own = {"max_tokens": 8} if side == "text" else {}
    return {"name": "transformers", "model": model, "hidden": 8, **own}


def settings(models: dict[str, str]) -> list[str]:

    return [f"towers.{side}={json.dumps(tower(side, model))}" for side, model in models.items()]


def test_a_name_on_the_hub_trains_the_same_model_as_its_folder(
    hub: Hub, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "corpus"
    write_corpus(source, 64, 64, 3, split="train")
    models = {}
    for kind, named in (
        ("hub", {side: f"tiny/{side}" for side in SIDES}),
        ("folder", {side: str(folders[side]) for side in SIDES}),
    ):
        one = (*settings(named), "resources.workers=0", "train.epochs=1")
        models[kind] = from_pretrained(run(source, tmp_path / kind, *one).outputs["model"])
    expected = models["folder"].state_dict()
    for name, value in models["hub"].state_dict().items():
        assert torch.equal(value, expected[name])
    for side in ("image", "text"):
        assert tower_fingerprint(models["hub"], side) == tower_fingerprint(models["folder"], side)
    assert set(hub.files_asked()) == READ, "no pickle and no code"
    brought = list((tmp_path / "hub").rglob("*.bin")) + list((tmp_path / "hub").rglob("*.py"))
    assert not brought


def weights_of(endpoint: str, cache: Path, towers: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what a rank starts from, its cache being its node's."""
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    ask(endpoint, cache, pytest.MonkeyPatch())
    torch.manual_seed(0)
    method = build_method({"name": "jdsh", "code_length": 16}, towers)
    start_from_pretrained(method)
    return dict(method.image.backbone.state_dict())


@pytest.mark.slow
def test_two_ranks_of_a_node_bring_weights_once_and_have_the_same(
    hub: Hub,
    folders: dict[str, Path],
    ranks: Ranks,  # noqa: F811
    tmp_path: Path,
) -> None:
    from transformers import ViTModel

    named = TowersConfig.model_validate({side: tower(side, f"tiny/{side}") for side in SIDES})
    towers = fill_towers(named).model_dump(mode="json")
    assert set(hub.files_asked()) == READ - {"model.safetensors"}, "the driver reads no weights"
    hub.asked.clear()
    published = ViTModel.from_pretrained(folders["image"]).state_dict()
    for state in ranks.call(weights_of, hub.endpoint, tmp_path / "node", towers):
        for name, value in state.items():
            assert torch.equal(value, published[name])
    assert hub.files_asked() == ["model.safetensors"] * 2, "once for each tower"
    hub.asked.clear()
    shutil.rmtree(tmp_path / "hub")
    ranks.call(weights_of, hub.endpoint, tmp_path / "node", towers)
    assert not hub.files_asked(), "nor a second time"


def refusal(model: str) -> str:
    """Return what is said of a model that cannot be had; all of it in one line."""
    with pytest.raises(ValueError, match=r"^towers\.text\.model: ") as caught:
        fill_towers(TowersConfig.model_validate({"text": tower("text", model)}))
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith("; or give a folder with config.json and *.safetensors, or its s3:// URI")
    return told


def test_a_name_that_is_missing_or_private_is_one_clear_line_and_a_token_opens_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private.add("tiny/text")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("tiny/text", "tiny/nothing"):
        told = refusal(name)
        assert f"{name!r} is no folder here, and the hub {hub.endpoint} has no such model for you" in told
        assert "set HF_TOKEN" in told
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    filled = fill_towers(TowersConfig.model_validate({"text": tower("text", "tiny/text")}))
    assert filled.text.config is not None


def test_a_hub_that_is_not_reached_is_one_clear_line_and_what_was_brought_before_still_serves(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = TowersConfig.model_validate({"text": tower("text", "tiny/text")})
    before = fill_towers(given)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    ask(nobody, tmp_path / "hub", monkeypatch)
    assert fill_towers(given) == before
    ask(nobody, tmp_path / "empty", monkeypatch)
    told = refusal("tiny/text")
    assert f"the hub {nobody} was not reached (" in told and "refused" in told
    assert "check HF_ENDPOINT and the network" in told


def test_a_network_of_timm_is_found_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not load here: {str(error).splitlines()[0]}")
    network = timm.create_model("test_resnet", pretrained=False)
    timm.models.save_for_hf(network, tmp_path / "published", safe_serialization=True)
    with running_hub({"timm/test_resnet.tiny": tmp_path / "published"}) as started:
        ask(started.endpoint, tmp_path / "hub", monkeypatch)
        given = {"name": "timm", "model": "test_resnet.tiny", "hidden": 8}
        towers = fill_towers(TowersConfig.model_validate({"image": given, "text": {"name": "bag"}}))
        method: Any = build_method({"name": "jdsh", "code_length": 16}, towers.model_dump(mode="json"))
        start_from_pretrained(method)
        assert set(started.files_asked()) == {"config.json", "model.safetensors"}
    published = network.state_dict()
    for name, value in method.image.backbone.state_dict().items():
        assert torch.equal(value, published[name]), name
