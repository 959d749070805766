"""The settings of a run: one model with a section per owner, read from file, environment and command line.

YAML file < ``HASHFLEET_<SECTION>__<KEY>`` environment < ``--set section.key=value``; an unknown key is an
error. Sections whose owner needs torch or FAISS are checked where they are used, so that a job that does
not train starts without them.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from jobs.explaining import explain
from pipeline.corpus.decode import DecodeLimits
from pipeline.corpus.schema import Columns

OWNERS = {
    "towers": "cmh_models.towers:TowersConfig",
    "train": "pipeline.learning.training:TrainConfig",
    "index": "pipeline.search.indexing:IndexConfig",
    "gate": "pipeline.quality.gate:GateConfig",
}
"""Sections that are plain mappings here, and the model that checks each of them."""

FILES = ("deepspeed",)
"""Sections that may be the name of a file instead."""

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = "runs"  # local folder or URI; the run's outputs stand in <dir>/<name>
    seed: int = 0
    resume: bool = True  # go on from the newest complete checkpoint of the same name
    trackers: tuple[str, ...] = ()  # mlflow, wandb: where a training run's scalars go besides TensorBoard


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
    # A source file beyond this is encoded as several units, each a range of its row groups.
    unit_bytes: int = Field(default=4 << 30, ge=1)
    cache_bytes: int = Field(default=2 << 30, ge=0)  # decoded rows a training worker may keep in memory


class EncodeConfig(Section):
    model: str | None = None  # artefact folder, or the digest of one in the store
    precision: Literal["fp32"] = "fp32"
    # Rows per forward pass, padded: a code never depends on its neighbours. Of pictures a quarter, on CPUs.
    tile: int = Field(default=64, ge=1)
    chunk_bytes: int = Field(default=64 << 20, ge=1 << 20)  # decoded bytes per chunk
    # Units handed to the cluster at once; the driver holds their receipts.
    units_in_flight: int = Field(default=4096, ge=1)
    rows_in_flight: int = Field(default=20_000_000, ge=1)  # likewise: not more rows, but always one unit
    max_reject_fraction: float = Field(default=0.01, ge=0, le=1)
    max_refused_units: int = Field(default=0, ge=0)
    query_encoders: bool = True  # keep the towers beside the model as ONNX files too (extra `onnx`)


class EvaluateConfig(Section):
    baselines: bool = False  # random, untrained and CCA codes beside the model's
    train: str | None = None  # where the baselines learn; None: the train rows of data.path
    allow_overlap: bool = False  # let a query stand in its own retrieval set


class StoreConfig(Section):
    uri: str | None = None
    channel: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9-]*$")
    lease_seconds: int = Field(default=900, ge=1)
    single_writer: bool = False  # never more than one run at once; then create-if-absent is not required


class ResourcesConfig(Section):
    workers: int = Field(default=1, ge=0)  # training ranks; 0 trains in this process, without Ray
    gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    encoders: int = Field(default=2, ge=1)  # actors that hold a copy of the model
    max_restarts: int = Field(default=3, ge=0)  # of all ranks, after one of them died
    worker_timeout: int = Field(default=600, ge=1)  # seconds to wait for a cluster that cannot give them


@dataclass(frozen=True)
class Sources:
    """Which source gave a setting: the file, the environment or the command line."""

    path: str | None = None  # of the file
    in_file: frozenset[str] = frozenset()  # dotted names of its settings and sections
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # dotted name -> in words, where it was given

    def where(self, name: str) -> str:
        """Tell in words where a setting was given: by its name, with all around it, or with what is in it."""
        around = [key for key in self.elsewhere if f"{name}.".startswith(f"{key}.")]
        if around:
            return self.elsewhere[max(around, key=len)].removesuffix(f" {name}")
        inside = [key for key in self.elsewhere if key.startswith(f"{name}.")]
        if inside and name not in self.in_file:
            return self.elsewhere[inside[0]]
        return self.path or "config"


class Config(Section):
    """The whole of a run's settings. Sections that are plain mappings here are checked by their owners."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    method: dict[str, Any] = {}
    towers: dict[str, Any] = {}
    train: dict[str, Any] = {}
    deepspeed: dict[str, Any] | str = {}
    encode: EncodeConfig = EncodeConfig()
    index: dict[str, Any] = {}
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: dict[str, Any] = {}
    store: StoreConfig = StoreConfig()
    resources: ResourcesConfig = ResourcesConfig()
    _sources: Sources = PrivateAttr(default_factory=Sources)

    def section(self, name: str, model: type[Model]) -> Model:
        """Check one of the sections that their owners define.

        Raises:
            ValueError: a key is unknown or a value does not fit.
        """
        return validate(model, getattr(self, name), prefix=f"{name}.", where=self._sources.where)

    def check(self, *names: str) -> dict[str, BaseModel]:
        """Check some of the sections that their owners define, by name; loads these owners.

        Raises:
            ValueError: a key is unknown or a value does not fit.
        """
        return {name: self.section(name, self._owner(name)) for name in names}

    def _owner(self, name: str) -> type[BaseModel]:
        if name == "method":
            from cmh_models import config_class

            return config_class(self.method)
        module, _, model = OWNERS[name].partition(":")
        owner: type[BaseModel] = getattr(importlib.import_module(module), model)
        return owner

    def resolved(self) -> dict[str, Any]:
        """Return every setting with its default filled in; loads the owners of all sections."""
        checked = self.check(*OWNERS, *(["method"] if self.method else []))
        dumped = {name: section.model_dump(mode="json") for name, section in checked.items()}
        return self.model_dump(mode="json") | dumped

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
    in_file = frozenset(_names(values))
    texts: dict[str, _Text] = {}
    for name, text in sorted(environ.items()):
        if name.startswith("HASHFLEET_"):
            key = ".".join(name.removeprefix("HASHFLEET_").lower().split("__"))
            texts[key] = _Text(f"environment variable {name}", text)
            _assign(values, key, texts[key].value(), source=texts[key].source)
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        if not separator:
            raise ValueError(f"--set takes section.key=value, got {override!r}")
        texts[key] = _Text(f"--set {key}", text)
        _assign(values, key, texts[key].value(), source=texts[key].source)
    _keep_texts(values, texts)

    sources = Sources(path, in_file, {key: text.source for key, text in texts.items()})
    config = validate(Config, values, where=sources.where)
    config._sources = sources
    return config


def validate(
    model: type[Model], values: Any, *, prefix: str = "", where: Callable[[str], str] = lambda name: "config"
) -> Model:
    """Check values against a pydantic model, with errors that name the setting and what was given.

    Args:
        prefix: of the names of its settings, such as "train.".
        where: tells of a setting's dotted name which source gave it.
    Raises:
        ValueError: in one line, all that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, model, prefix=prefix, where=where)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which a date is text, as every setting takes it, and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if not resolver[0].endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class _Text:
    """A value as the environment or the command line gives it."""

    source: str
    text: str

    def value(self) -> Any:
        """Read it as YAML; what is text then is taken to the letter, so that ' #' starts no comment."""
        try:
            value = yaml.load(self.text, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{self.source}: not a YAML value: {self.text!r}") from error
        quoted = self.text.lstrip()[:1] in ("'", '"')
        return self.text.strip() if isinstance(value, str) and not quoted else value


def _keep_texts(values: dict[str, Any], texts: Mapping[str, _Text]) -> None:
    """Put back the letters of what YAML took for a number or a switch where a setting takes text."""
    try:
        Config.model_validate(values)
    except ValidationError as error:
        for issue in error.errors():
            key = ".".join(str(part) for part in issue["loc"])
            if (
                issue["type"] == "string_type"
                and key in texts
                and not isinstance(issue["input"], list | dict)
            ):
                _assign(values, key, texts[key].text.strip(), source=texts[key].source)


def _read_yaml(path: str) -> dict[str, Any]:
    if Path(path).is_dir():
        raise ValueError(f"--config takes a YAML file, got the folder {path}")
    if not Path(path).is_file():
        raise ValueError(f"no config file at {path}")
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections (a mapping), got {type(values).__name__}")
    return {name: section for name, section in values.items() if section is not None}  # all commented out


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of settings and of the sections around them."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")


def _assign(values: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    keys = key.split(".")
    if not all(keys) or (len(keys) < 2 and key not in FILES):
        raise ValueError(f"{source} must name a section and a key, like train.epochs")
    for step in keys[:-1]:
        if values.get(step) is None:
            values[step] = {}
        values = values[step]
        if not isinstance(values, dict):
            raise ValueError(f"{source}: {step} is a value, not a section")
    values[keys[-1]] = value
