"""Pretrained weights of backbones, read from a folder on disk: config, preprocessing, tokeniser, safetensors.

Whoever calls brings the folder: nothing here reaches for a network. Weights are read from safetensors alone,
never from a pickle, and no code that lies in the folder is run.
"""

import json
from pathlib import Path
from typing import Any

import torch

from cmh_models.backbones import Backbone, BackboneTower, TimmTower, TransformersTextTower
from cmh_models.described import TowerSettings
from cmh_models.foreign import imported, one_line, timm_weights, without_pooler
from cmh_models.method import HashMethod, Side

RANDOM = "none"
"""As `weights`: the network starts from random ones."""
HALF = (0.5, 0.5, 0.5)
_NOT_THE_NETWORK = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def fill_settings(settings: TowerSettings, side: Side, folder: Path | None) -> TowerSettings:
    """Return a tower's settings with all that building it takes, from the folder of its model.

    Args:
        folder: None where nothing was published: a network of timm with random weights.
    Raises:
        ValueError: a file is missing or damaged, or a setting contradicts the model.
    """
    if not isinstance(settings, BackboneTower):
        return settings
    config = {} if folder is None else _json(folder, "config.json", side)
    if folder is None or isinstance(settings, TimmTower):
        known = _timm_facts(settings, config)
    else:
        known = _facts(settings, side, config, folder)
    size = getattr(settings, "image_size", None)
    if not isinstance(settings, TimmTower) and size not in (None, known.get("image_size")):
        raise ValueError(
            f"towers.{side}.image_size is {size} but the backbone takes {known['image_size']}: leave it out"
        )
    missing = {name: value for name, value in known.items() if getattr(settings, name) is None}
    return type(settings).model_validate(settings.model_dump() | missing)


def load_weights(method: HashMethod, side: Side, folder: Path) -> None:
    """Let the backbone of a side start from the weights in a folder.

    Raises:
        ValueError: there are none, they are no safetensors, or they are of another network.
    """
    network: Any = getattr(method, side)
    tower: Backbone = getattr(network, "tower", network)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"towers.{side}: {folder} has no *.safetensors; weights in other forms are not read")
    if isinstance(tower.settings, TimmTower):
        file = folder / "model.safetensors"
        named = str(file if file in files else files[0])
        state, missing = timm_weights((tower.settings.config or {})["architecture"], named)
    else:
        state, missing = _transformers_state(tower, side, folder)
    if missing:
        raise ValueError(
            f"towers.{side}: {folder} lacks {len(missing)} weights of the network, first {missing[0]}: "
            "it holds another model"
        )
    tower.load_backbone(state)


def _transformers_state(
    tower: Backbone, side: Side, folder: Path
) -> tuple[dict[str, torch.Tensor], list[str]]:
    try:
        loaded, told = type(tower.backbone).from_pretrained(
            str(folder),
            config=tower.backbone.config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"towers.{side}: weights in {folder} do not fit: {one_line(error)}") from error
    state: dict[str, torch.Tensor] = without_pooler(loaded).state_dict()
    return state, sorted(set(told["missing_keys"]) & set(state))


def _facts(settings: BackboneTower, side: Side, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    own = config.get("vision_config" if side == "image" else "text_config")  # of a model of both sides
    network = _network_config(own if isinstance(own, dict) else config, side, folder)
    if isinstance(settings, TransformersTextTower):
        return {"config": network, "vocabulary": _text(folder, "tokenizer.json", side)}
    try:
        scaling = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        scaling = {}
    size = network.get("image_size")
    if not isinstance(size, int):
        size = _size(scaling.get("crop_size") or scaling.get("size")) or 224
    return {
        "config": network,
        "image_size": size,
        "mean": scaling.get("image_mean") or HALF,
        "std": scaling.get("image_std") or HALF,
    }


def _network_config(config: dict[str, Any], side: Side, folder: Path) -> dict[str, Any]:
    """Return what transformers builds the network from, its defaults filled in and its dropout off."""
    transformers = imported("transformers", f"towers.{side}")
    own = {name: value for name, value in config.items() if name not in _NOT_THE_NETWORK}
    try:
        full = json.loads(json.dumps(transformers.AutoConfig.for_model(**own).to_diff_dict()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"towers.{side}: {folder}/config.json: {one_line(error)}") from error
    kept = {name: value for name, value in full.items() if name not in _NOT_THE_NETWORK}
    return {name: 0.0 if _is_dropout(name, value) else value for name, value in kept.items()}


def _timm_facts(settings: BackboneTower, config: dict[str, Any]) -> dict[str, Any]:
    given = config.get("pretrained_cfg", config)
    return {
        "config": {"architecture": config.get("architecture") or settings.model},
        "image_size": given.get("input_size", (3, 224, 224))[-1],
        "mean": given.get("mean", HALF),
        "std": given.get("std", HALF),
    }


def _is_dropout(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, float)


def _size(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) else None


def _json(folder: Path, name: str, side: Side) -> dict[str, Any]:
    text = _text(folder, name, side)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"towers.{side}: {folder / name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"towers.{side}: {folder / name} must hold a JSON object")
    return value


def _text(folder: Path, name: str, side: Side) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"towers.{side}: cannot read {folder / name} ({type(error).__name__}); a model's folder holds "
            "config.json, *.safetensors and, for texts, tokenizer.json"
        ) from error
