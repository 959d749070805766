"""The settings of a run: one model with a section per owner, read from file, environment and command line.

YAML file < ``HASHFLEET_<SECTION>__<KEY>`` environment < ``--set section.key=value``; an unknown key is an
error. Sections whose owner needs torch or FAISS are checked where they are used, so that a job that does
not train starts without them.
"""

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.corpus.decode import DecodeLimits
from pipeline.corpus.schema import Columns

OWNERS = {
    "towers": "cmh_models.towers:TowersConfig",
    "train": "pipeline.learning.training:TrainConfig",
    "index": "pipeline.search.indexing:IndexConfig",
}
"""Sections that are plain mappings here, and the model that checks each of them."""

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"  # local folder or URI; the run's outputs stand in <dir>/<name>
    seed: int = 0
    resume: bool = True  # go on from the newest complete checkpoint of the same name


class SplitConfig(Section):
    """Which values of the `split` column make which set; without such a column every row is train."""

    train: tuple[str, ...] = ("train",)
    query: tuple[str, ...] = ("query", "test")
    retrieval: tuple[str, ...] = ("train", "database", "retrieval")
    validation: float = Field(default=0.0, ge=0, lt=1)  # share of train, drawn by key, kept out of training


class ScenesConfig(Section):
    """The built-in corpus, drawn at `data.path` when nothing is there yet."""

    rows: int = Field(default=8000, ge=1)
    rows_per_file: int = Field(default=1000, ge=1)
    seed: int = 1
    split: str = "train"
    queries: int = Field(default=0, ge=0)  # of the rows, the first so many are of split `query` instead


class DataConfig(Section):
    path: str | None = None  # a Parquet file, a folder or a URI of them
    scenes: ScenesConfig | None = None
    columns: Columns = Columns()
    limits: DecodeLimits = DecodeLimits()
    split: SplitConfig = SplitConfig()
    cache_bytes: int = Field(default=2 << 30, ge=0)  # decoded rows a training worker may keep in memory


class EncodeConfig(Section):
    model: str | None = None  # artefact folder, or the digest of one in the store
    precision: Literal["fp32"] = "fp32"
    # Rows per forward pass, padded, so that a code never depends on its neighbours.
    tile: int = Field(default=64, ge=1)
    chunk_bytes: int = Field(default=64 << 20, ge=1 << 20)  # decoded bytes per chunk
    # Units handed to the cluster at once; the driver holds their receipts.
    units_in_flight: int = Field(default=4096, ge=1)
    max_reject_fraction: float = Field(default=0.01, ge=0, le=1)
    max_refused_units: int = Field(default=0, ge=0)


class EvaluateConfig(Section):
    baselines: bool = False  # random, untrained and CCA codes beside the model's
    train: str | None = None  # where the baselines learn; None: the train rows of data.path
    allow_overlap: bool = False  # let a query stand in its own retrieval set


class StoreConfig(Section):
    uri: str | None = None
    channel: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9-]*$")
    lease_seconds: int = Field(default=900, ge=1)


class ResourcesConfig(Section):
    workers: int = Field(default=1, ge=0)  # training ranks; 0 trains in this process, without Ray
    gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    encoders: int = Field(default=2, ge=1)  # actors that hold a copy of the model
    worker_timeout: int = Field(default=600, ge=1)  # seconds to wait for a cluster that cannot give them


class Config(Section):
    """The whole of a run's settings. `method`, `towers`, `train` and `index` are checked by their owners."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    method: dict[str, Any] = {}
    towers: dict[str, Any] = {}
    train: dict[str, Any] = {}
    deepspeed: dict[str, Any] | str = {}
    encode: EncodeConfig = EncodeConfig()
    index: dict[str, Any] = {}
    evaluate: EvaluateConfig = EvaluateConfig()
    store: StoreConfig = StoreConfig()
    resources: ResourcesConfig = ResourcesConfig()

    def section(self, name: str, model: type[Model]) -> Model:
        """Check one of the sections that their owners define.

        Raises:
            ValueError: a key is unknown or a value does not fit.
        """
        return validate(model, getattr(self, name), where=name)

    def resolved(self) -> dict[str, Any]:
        """Return every setting with its default filled in; loads the owners of all sections."""
        from cmh_models import method_config

        values = self.model_dump(mode="json")
        for name, owner in OWNERS.items():
            module, _, model = owner.partition(":")
            checked = self.section(name, getattr(importlib.import_module(module), model))
            values[name] = checked.model_dump(mode="json")
        if self.method:
            values["method"] = method_config(self.method).model_dump(mode="json")
        return values

    def require(self, key: str) -> str:
        """Return a setting that this job cannot do without, by its dotted name."""
        section, _, name = key.partition(".")
        value = getattr(getattr(self, section), name)
        if not value:
            raise ValueError(f"{key} is not set; give it in the config file or by --set {key}=...")
        return str(value)


def load_config(
    path: str | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> Config:
    """Merge the three sources of settings and check them.

    Args:
        path: YAML file, or None for the defaults alone.
        overrides: `section.key=value` pairs; the value is read as YAML.
    Raises:
        ValueError: a source cannot be read, a key is unknown, or a value does not fit.
    """
    values = _read_yaml(path) if path else {}
    for name, text in sorted(environ.items()):
        if name.startswith("HASHFLEET_"):
            keys = name.removeprefix("HASHFLEET_").lower().split("__")
            _assign(values, keys, text, source=f"environment variable {name}")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"--set takes section.key=value, got {override!r}")
        _assign(values, key.strip().split("."), text, source=f"--set {key}")
    return validate(Config, values, where=path or "config")


def validate(model: type[Model], values: Any, *, where: str) -> Model:
    """Check values against a pydantic model, with errors that name the setting and what was given.

    Raises:
        ValueError: in one line, all that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(
            f"{where}: " + "; ".join(_explain(model, issue) for issue in error.errors())
        ) from None


def _explain(model: type[BaseModel], issue: Any) -> str:
    key = ".".join(str(part) for part in issue["loc"])
    if issue["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known: {', '.join(_known_keys(model, issue['loc'][:-1]))}"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {issue['input']!r}"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return ["(see the documentation of this section)"]
        model = field.annotation
    return sorted(model.model_fields)


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"no config file at {path}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections (a mapping), got {type(values).__name__}")
    return values


def _assign(values: dict[str, Any], keys: list[str], text: str, *, source: str) -> None:
    if len(keys) < 2 or not all(keys):
        raise ValueError(f"{source} must name a section and a key, like train.epochs")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not a YAML value: {text!r}") from error
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{source}: {key} is a value, not a section")
    values[keys[-1]] = value
