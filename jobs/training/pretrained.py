"""Bring what pretrained towers start from to the node where it is read: a folder, object storage, the hub.

Driver: config, preprocessing and tokeniser, which fill the towers' settings. Ranks: the weights, once a node:
the first rank of a node brings them, the others wait. Object storage lands in a folder of the user's cache
that is named by what stands there, the hub's files in the hub's own cache.
"""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from cmh_models.backbones import BackboneTower, TimmTower
from cmh_models.described import TowerSettings
from cmh_models.foreign import imported, one_line
from cmh_models.method import SIDES, HashMethod, Side
from cmh_models.pretrained import RANDOM, fill_settings, load_weights
from cmh_models.towers import TowersConfig
from pipeline.learning.gather import gather_objects
from pipeline.releases.storage import Storage, cache_folder

DESCRIPTION = ("config.json", "preprocessor_config.json", "tokenizer.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def fill_towers(towers: TowersConfig) -> TowersConfig:
    """Return the settings of the towers with all that building them takes; reads what is not filled in.

    Raises:
        ValueError: a model cannot be had, or contradicts the settings.
    """
    filled: dict[str, TowerSettings] = {}
    for side, settings in _backbones(towers):
        if settings.config is None:
            source = _description(settings)
            folder = bring(source, f"towers.{side}.model", DESCRIPTION) if source else None
            filled[side] = fill_settings(settings, side, folder)
    return towers.model_copy(update=filled)


def start_from_pretrained(method: HashMethod) -> None:
    """Give the backbones of a method the weights they start from; called by all ranks.

    Raises:
        ValueError: weights cannot be had or do not fit, here or on another node.
    """
    for side, settings in _backbones(TowersConfig.model_validate(method.spec["towers"])):
        if settings.weights == RANDOM:
            continue
        name, reference = f"towers.{side}.weights", settings.weights or _model(settings)
        leader, error = os.environ.get("LOCAL_RANK", "0") == "0", ""
        if leader:
            error = _tried(reference, name)
        errors = [told for told in gather_objects(error) if told]  # all wait for the leaders of their nodes
        if errors:
            raise ValueError(errors[0])
        load_weights(method, side, bring(reference, name, WEIGHTS, here=not leader))


def bring(reference: str, name: str, patterns: tuple[str, ...], *, here: bool = False) -> Path:
    """Return a local folder that holds a model.

    Args:
        reference: a folder, the URI of one, or a name on the hub.
        name: of the setting that gives it, for errors.
        patterns: of the files that are wanted.
        here: nothing is to be downloaded: another rank of this node did.
    Raises:
        ValueError: there is no such model, or it cannot be reached.
    """
    if Path(reference).is_dir():
        return Path(reference)
    if "://" in reference:
        return _from_storage(reference, name)
    if reference.startswith((".", "/", "~")):
        raise ValueError(f"{name}: no folder at {reference}")
    hub = imported("huggingface_hub", name)
    try:
        return Path(hub.snapshot_download(reference, allow_patterns=list(patterns), local_files_only=here))
    except Exception as error:  # the hub's client raises what its HTTP library does, and its own
        raise ValueError(
            f"{name}: {reference!r} is no folder here, and {_why_not(error)}; or give a folder with "
            "config.json and *.safetensors, or its s3:// URI"
        ) from error


def _why_not(error: Exception) -> str:
    """Say why the hub has not given a model, and what to do."""
    from huggingface_hub import constants, errors

    hub = f"the hub {constants.ENDPOINT}"
    if isinstance(error, errors.GatedRepoError):
        return f"{hub} gives it only to those who were let in: ask there, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no such model for you: check the name, or set HF_TOKEN if it is private"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
        if isinstance(cause, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE keeps the hub from being asked: unset it, or bring the model here before"
        return f"{hub} was not reached ({one_line(cause)}): check HF_ENDPOINT and the network"
    return f"{hub} does not give it ({one_line(error)}): check the name"


def _tried(reference: str, name: str) -> str:
    try:
        bring(reference, name, WEIGHTS)
    except ValueError as error:
        return str(error)
    return ""


def _from_storage(uri: str, name: str) -> Path:
    """Download a folder into the cache, whole or not at all, unless it is there."""
    storage = Storage(uri)
    try:
        found = sorted((file.path, file.size, file.token) for file in storage.files())
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot read {uri}: {one_line(error)}") from error
    if not found:
        raise ValueError(f"{name}: {uri} holds no files")
    digest = blake2b(repr((storage.uri, found)).encode(), digest_size=16).hexdigest()
    target = cache_folder("pretrained") / digest
    if target.is_dir():
        return target
    try:
        storage.download_folder("", target)
    except OSError as error:
        raise ValueError(f"{name}: cannot bring {uri} here: {one_line(error)}") from error
    return target


def _backbones(towers: TowersConfig) -> Iterator[tuple[Side, BackboneTower]]:
    for side in SIDES:
        settings = getattr(towers, side)
        if isinstance(settings, BackboneTower):
            yield side, settings


def _description(settings: BackboneTower) -> str | None:
    """Return where config, preprocessing and tokeniser stand; None: timm's random networks need none."""
    if isinstance(settings, TimmTower) and settings.weights is not None:
        return None if settings.weights == RANDOM else settings.weights
    return _model(settings)


def _model(settings: BackboneTower) -> str:
    """Return where a model is published: networks of timm lie in one place on the hub."""
    if not isinstance(settings, TimmTower) or Path(settings.model).is_dir() or "/" in settings.model:
        return settings.model
    return f"timm/{settings.model}"
