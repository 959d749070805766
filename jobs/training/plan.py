"""What a training run is, settled before a rank starts: rows, networks, engine, and where outputs stand."""

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs

from cmh_models import build_method, method_class, method_config
from cmh_models.artefact import save_pretrained
from cmh_models.method import HashMethod, MethodConfig
from cmh_models.towers import TowersConfig
from jobs.config import Config
from jobs.source import source_files, source_uri
from jobs.training.first_rows import check_first_rows
from jobs.training.pretrained import fill_towers
from pipeline.corpus.dataset import PieceReader
from pipeline.corpus.decode import InputRecipe
from pipeline.corpus.listing import Listing, Selection, list_pairs
from pipeline.corpus.schema import SIDES
from pipeline.encoding.models import input_recipe
from pipeline.learning.deepspeed_json import read_json
from pipeline.learning.engine import check_sections, deepspeed_values, local_device
from pipeline.learning.training import TrainConfig, refuse_batch_norm, seed_step
from pipeline.releases.addresses import digest_bytes, digest_json
from pipeline.releases.storage import Storage, source_root

log = logging.getLogger(__name__)

FREE = {
    "activation_checkpointing",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "epochs",
    "export",
    "log_every",
    "micro_batch_size",
    "step_timeout",
    "validate_every_epochs",
}
"""Settings of `train` that a run may change when it goes on: no step depends on them."""


@dataclass(frozen=True)
class TrainingRun:
    """All that a rank needs to know; it is sent to each of them."""

    config: Config
    train: TrainConfig
    spec: dict[str, Any]  # of the method, resolved: `method` and `towers`
    deepspeed: dict[str, Any]
    listing: Listing
    filesystem: pyarrow.fs.FileSystem
    recipe: InputRecipe
    storage: Storage  # of run.dir
    source: str  # digest of the names and sizes of the source's files
    held_out: Listing | None = None  # rows to validate on, if that is asked for

    @property
    def folder(self) -> str:
        """Where the job's own files stand, inside `storage`."""
        return f"{self.config.run.name}/train"

    @property
    def model(self) -> str:
        """Where the model stands, inside `storage`."""
        return f"{self.config.run.name}/model"

    @property
    def best(self) -> str:
        """Where the model that did best in validation stands, inside `storage`."""
        return f"{self.config.run.name}/best"

    @property
    def stacks(self) -> str:
        """Where ranks whose step hung have said where they stood, inside `storage`."""
        return f"{self.folder}/stacks"

    def keep_stacks(self, name: str, text: str) -> None:
        """Keep what a rank says whose step hangs."""
        self.storage.write(f"{self.stacks}/{name}", text.encode())

    def build(self) -> HashMethod:
        """Return the untrained method: the same weights on every rank."""
        seed_step(self.config.run.seed)
        return build_method(self.spec["method"], self.spec["towers"])

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be gone on from."""
        return {
            "method": self.spec["method"],
            "towers": {side: _facts(tower) for side, tower in self.spec["towers"].items()},
            "run.seed": self.config.run.seed,
            "train": self.train.model_dump(mode="json", exclude=FREE),
            "data": self.config.data.model_dump(mode="json", include={"columns", "limits", "split"}),
            "names and sizes of the files of data.path (digest)": self.source,
            "rows to train on": self.listing.rows,
        }


def plan_run(config: Config) -> TrainingRun:
    """Check all that can be checked before a cluster is asked for anything.

    Raises:
        ValueError: a setting, the source, or what they make together cannot be trained.
    """
    return _with_rows(config, *check_settings(config))


def check_settings(config: Config) -> tuple[TrainConfig, dict[str, Any], Storage]:
    """Check what can be checked before the source is read, or drawn.

    Raises:
        ValueError: a setting does not fit, alone or with others.
    """
    config.check("method", "towers")
    train = config.section("train", TrainConfig)
    json = read_json(config.deepspeed)
    if config.resources.workers:
        check_sections(json, deepspeed_values(train, json, config.resources.workers))
    else:
        local_device(gpu=config.resources.gpu)
        if json:
            log.info("resources.workers is 0: plain torch in this process, the deepspeed section is not used")
    if train.precision == "fp16" and not config.resources.gpu:
        raise ValueError("train.precision fp16 needs resources.gpu=true: on CPUs use bf16 or fp32")
    storage = Storage(config.run.dir)
    if not config.run.resume and storage.list(config.run.name):
        raise ValueError(
            f"{storage.where(config.run.name)} exists and run.resume is false: choose another run.name"
        )
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in config.run.dir and not Path(config.run.dir).is_absolute():
        log.warning("run.dir %s lies in the job's temporary folder: give an absolute path", config.run.dir)
    if train.validate_every_epochs and not config.data.split.validation:
        raise ValueError("train.validate_every_epochs is set: give data.split.validation a share of the rows")
    if train.export == "best" and not train.validate_every_epochs:
        raise ValueError("train.export is best: set train.validate_every_epochs, which decides what is best")
    return train, json, storage


def _with_rows(config: Config, train: TrainConfig, json: dict[str, Any], storage: Storage) -> TrainingRun:
    uri = source_uri(config)
    filesystem, root = source_root(uri).filesystem()
    files = source_files(uri)
    paths = [f"{root}/{file.path}" for file in files]
    splits, share = config.data.split.train, config.data.split.validation
    settings = method_config(config.method)
    selection, labels = Selection(splits, share), method_class(settings.name).needs_labels
    listing = list_pairs(paths, filesystem, columns=config.data.columns, selection=selection, labels=labels)
    listing.require(train.global_batch_size, where=uri)
    if labels:
        settings = fit_classes(settings, listing)
    held_out = None
    if train.validate_every_epochs:
        selection = Selection(splits, share, inside=True)
        held_out = list_pairs(
            paths, filesystem, columns=config.data.columns, selection=selection, labels=True
        )
        if not held_out.classes:
            raise ValueError(
                "train.validate_every_epochs judges by labels, and no pair that data.split.validation keeps "
                "out has any: name their column in data.columns.labels, or set train.validate_every_epochs=0"
            )
    towers = fit_towers(fill_towers(config.section("towers", TowersConfig)), listing)
    method = build_method(settings.model_dump(mode="json"), towers)
    refuse_batch_norm(method.train())
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    check_first_rows(listing, PieceReader(filesystem, recipe, listing.classes))
    source = digest_json([[file.path, file.size] for file in files])
    return TrainingRun(
        config, train, method.spec, json, listing, filesystem, recipe, storage, source, held_out
    )


def fit_classes(settings: MethodConfig, listing: Listing) -> MethodConfig:
    """Return the settings of a method that learns from labels, with their number filled in if it has a place.

    Raises:
        ValueError: no row has labels, or a label lies beyond the number that is set.
    """
    if not listing.classes:
        raise ValueError(f"method {settings.name!r} learns from labels, but no row has any")
    if "classes" not in type(settings).model_fields:
        return settings
    given = getattr(settings, "classes", None)
    if given is None:
        return settings.model_copy(update={"classes": listing.classes})
    if given < listing.classes:
        raise ValueError(f"method.classes is {given} but the highest label is {listing.classes - 1}")
    listing.classes = given
    return settings


def fit_towers(towers: TowersConfig, listing: Listing) -> dict[str, Any]:
    """Return the settings of the towers, with the widths of feature columns filled in.

    Raises:
        ValueError: a tower does not take what its column holds.
    """
    settings = towers.model_dump(mode="json")
    for side in SIDES:
        column, tower = listing.chunks[0].columns.side(side), settings[side]
        if column is None:
            raise ValueError(f"the source has no column for the {side} side")
        if (tower["name"] == "features") != (column.kind == "features"):
            raise ValueError(
                f"towers.{side} is {tower['name']!r} but column {column.name!r} holds {column.kind}: "
                f"set towers.{side}.name, or name another column under data.columns"
            )
        if column.kind == "features" and tower["width"] is None:
            tower["width"] = listing.widths[side]
        elif column.kind == "features" and tower["width"] != listing.widths[side]:
            raise ValueError(
                f"towers.{side}.width is {tower['width']} but rows of {column.name!r} have "
                f"{listing.widths[side]} features: leave it out"
            )
    return settings


def keep_model(method: HashMethod, run: TrainingRun, metrics: dict[str, float], *, path: str = "") -> str:
    """Write a model beside the run, in place of one from an earlier attempt; return its digest.

    Args:
        path: inside the run's storage; default: where the run's model belongs.
    """
    path = path or run.model
    data = {"rows": run.listing.rows, "classes": run.listing.classes, "seed": run.config.run.seed}
    card = {"training": run.train.model_dump(mode="json"), "data": data, "metrics": metrics}
    target = run.storage.local(path)
    with tempfile.TemporaryDirectory(dir=_parent(target), prefix=".model-") as temporary:
        made, old = Path(temporary) / "model", Path(temporary) / "old"
        digest = save_pretrained(method, made, card=card)
        if target is None:
            for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
                run.storage.upload(file, f"{path}/{file.name}")
            return digest
        if target.exists():
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return digest


def _facts(tower: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a tower with its tokeniser, which may be megabytes, by a digest."""
    vocabulary = tower.get("vocabulary")
    return tower if vocabulary is None else tower | {"vocabulary": digest_bytes(vocabulary.encode())}


def _parent(target: Path | None) -> Path | None:
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    return None if target is None else target.parent
