"""Models in a store: an artefact folder goes to models/<digest>/ once, and encoders read it from there.

Torch is imported where a model is opened: naming one, or bringing one into a store, needs none.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmh_models.artefact_digest import artefact_digest
from pipeline.corpus.recipe import DecodeLimits, InputRecipe
from pipeline.corpus.schema import SIDES, Columns, Side
from pipeline.releases.addresses import model_path
from pipeline.releases.storage import Storage

if TYPE_CHECKING:
    from cmh_models.method import HashMethod

_DIGEST = re.compile(r"[0-9a-f]{32}")
_LAST = "config.json"
_EXPECTED = "encode.model takes an artefact folder, its URI, or the digest of a model in the store"


@dataclass(frozen=True)
class ModelFacts:
    """What a night must know of a model before any row is read."""

    digest: str
    code_length: int
    fingerprints: dict[str, str]  # by side
    recipe: InputRecipe


def read_facts(
    folder: Path,
    columns: Columns,
    limits: DecodeLimits,
    *,
    sides: Sequence[Side] = SIDES,
    precision: str = "fp32",
    gpu: bool = False,
) -> ModelFacts:
    """Say what an artefact's codes are and how rows must be decoded for it.

    Args:
        columns: of the source, as far as the settings name them.
        limits: how large a value may be.
        gpu: the codes are made on a GPU.
    Raises:
        ValueError: the folder is no artefact, or it is damaged.
    """
    from cmh_models.artefact import from_pretrained, tower_fingerprint

    method = from_pretrained(folder)
    device = "cuda" if gpu else "cpu"
    return ModelFacts(
        digest=artefact_digest(folder),
        code_length=method.code_length,
        fingerprints={
            side: tower_fingerprint(method, side, precision=precision, device=device) for side in sides
        },
        recipe=input_recipe(method, columns, limits),
    )


def input_recipe(method: HashMethod, columns: Columns, limits: DecodeLimits) -> InputRecipe:
    """Return how rows are decoded for a model: pixels of its size, or features of its width."""
    return InputRecipe(
        columns=columns,
        limits=limits,
        image_size=method.image_size,
        image_width=_feature_width(method, "image"),
        text_width=_feature_width(method, "text"),
    )


def open_model(reference: str, store: Storage | None = None) -> HashMethod:
    """Return the model that a setting names, ready to encode.

    Args:
        reference: an artefact folder, its URI, or the digest of a model in `store`.
    Raises:
        ValueError: there is no such model, or it is no artefact.
    """
    from cmh_models.artefact import from_pretrained

    with artefact(reference, store) as folder:
        return from_pretrained(folder)


@contextmanager
def artefact(reference: str, store: Storage | None = None) -> Iterator[Path]:
    """Give a model as a local folder, brought from object storage for as long as it is used.

    Raises:
        ValueError: there is no such model.
    """
    remote = "://" in reference
    if not remote and Path(reference).is_dir():
        yield Path(reference)
        return
    if remote:
        parent, _, path = reference.rstrip("/").rpartition("/")
        root = Storage(parent)
    elif store is not None and _DIGEST.fullmatch(reference):
        root, path = store, model_path(reference)
    else:
        raise ValueError(f"no model at {reference!r}; {_EXPECTED}")
    local = root.local(path)
    if local is not None and local.is_dir():
        yield local
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            root.download_folder(path, Path(folder) / "model")
        except FileNotFoundError:
            raise ValueError(f"no model at {root.where(path)}; {_EXPECTED}") from None
        yield Path(folder) / "model"


def keep_model(folder: Path, store: Storage) -> str:
    """Put an artefact into a store, unless it is there, and return its digest.

    The file that makes it a model is written last, so that a model in the store is a whole one.
    """
    digest = artefact_digest(folder)
    path = model_path(digest)
    if not store.exists(f"{path}/{_LAST}"):
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == _LAST, file.name)):
            store.upload(file, f"{path}/{file.name}")
    return digest


def _feature_width(method: HashMethod, side: Side) -> int | None:
    from cmh_models.towers import GivenFeatures

    network = getattr(method, side)
    network = getattr(network, "tower", network)  # levels are built on a tower and take its inputs
    return network.width if isinstance(network, GivenFeatures) else None


def load_encoder(digest: str, store: Storage, *, gpu: bool = False) -> HashMethod:
    """Load a model of the store where it is to run.

    Raises:
        RuntimeError: a GPU is asked for and there is none.
    """
    import torch

    if gpu and not torch.cuda.is_available():
        raise RuntimeError("resources.gpu is true, but torch sees no GPU on this node; set it to false")
    return open_model(digest, store).to("cuda" if gpu else "cpu")
