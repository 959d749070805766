"""What a night must know of its model before any row is read, from the store if it is known there already.

Fingerprints follow from the weights, and to compute them the networks must be built: seconds of imports that
a night without change would spend on nothing else. So they are kept beside the model, under a name that
covers the artefact, how it is run, and the code that computed them: whatever of these changes, they are
computed again.
"""

import json
import re
from functools import lru_cache
from pathlib import Path

import cmh_models
import pipeline.corpus.recipe
import pipeline.encoding.models
from cmh_models.artefact_digest import artefact_digest
from jobs.config import Config
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.models import ModelFacts, artefact, read_facts
from pipeline.releases.addresses import digest_bytes, digest_json, model_path
from pipeline.releases.storage import Storage

_DIGEST = re.compile(r"[0-9a-f]{32}")


def model_facts(config: Config, store: Storage) -> ModelFacts:
    """Return the facts of the model that `encode.model` names; nothing is written.

    Raises:
        ValueError: there is no such model, or it is no artefact.
    """
    reference = config.require("encode.model")
    if _DIGEST.fullmatch(reference) and not Path(reference).is_dir():
        known = _kept(config, store, reference)
        if known is not None:
            return known  # no byte of the model is read
    with artefact(reference, store) as folder:
        known = _kept(config, store, artefact_digest(folder))
        if known is not None:
            return known
        data = config.data
        gpu, precision = config.resources.gpu, config.encode.precision
        return read_facts(folder, data.columns, data.limits, precision=precision, gpu=gpu)


def keep_facts(config: Config, store: Storage, facts: ModelFacts) -> None:
    """Keep the facts of a model beside it."""
    inputs = facts.recipe.model_dump(mode="json", exclude={"columns", "limits"})
    kept = {"code_length": facts.code_length, "fingerprints": facts.fingerprints, "recipe": inputs}
    path = _path(config, facts.digest)
    if not store.exists(path):
        store.create(path, json.dumps(kept, indent=1).encode())


def _kept(config: Config, store: Storage, digest: str) -> ModelFacts | None:
    try:
        kept = json.loads(store.read(_path(config, digest)))
        recipe = InputRecipe(columns=config.data.columns, limits=config.data.limits, **kept["recipe"])
        return ModelFacts(digest, kept["code_length"], kept["fingerprints"], recipe)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # not kept, or not as this version keeps it: they are computed


def _path(config: Config, digest: str) -> str:
    device = "cuda" if config.resources.gpu else "cpu"
    return f"{model_path(digest)}/facts-{digest_json([_code(), config.encode.precision, device])}.json"


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a digest of the code that fingerprints and input recipes follow from."""
    modules = [pipeline.corpus.recipe, pipeline.encoding.models]
    files = [Path(str(module.__file__)) for module in modules]
    files += sorted(Path(str(cmh_models.__file__)).parent.glob("*.py"))
    return digest_json([[file.name, digest_bytes(file.read_bytes())] for file in files])
