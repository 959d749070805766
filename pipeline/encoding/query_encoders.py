"""The towers of a model as ONNX files beside it in a store, so that queries are encoded without torch.

    models/<digest>/onnx/{image,text}.onnx    one row in, the values before the signs out
    models/<digest>/onnx/encoders.json        what each takes, and its sha256; written last

They follow from the model and are no part of its name: they may be deleted, and are made again by a night
that encodes something. Needs the packages onnx and onnxscript (extra `onnx`).
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmh_models.artefact import from_pretrained
from cmh_models.artefact_digest import artefact_digest
from cmh_models.method import HashMethod, SideNetwork
from cmh_models.towers import BagOfWords, ConvolutionalPixels, DescribedPixels, GivenFeatures
from cmh_models.words import TOKENISER_VERSION
from pipeline.corpus.schema import SIDES, Side
from pipeline.releases.addresses import model_path, sha256
from pipeline.releases.storage import Storage

VERSION = 1
_NEEDED = ("onnx", "onnxscript")
_PIXELS = (DescribedPixels, ConvolutionalPixels)
_QUIET = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")

log = logging.getLogger(__name__)


def keep_query_encoders(folder: Path, store: Storage) -> bool:
    """Put the towers of an artefact into a store as ONNX files, unless they are there.

    A tower that cannot be written so is listed with the reason: its release has no encoder for it.

    Returns:
        Whether they are there now; False where the packages that write them are missing.
    """
    path = f"{model_path(artefact_digest(folder))}/onnx"
    if store.exists(f"{path}/encoders.json"):
        return True
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        log.info("the release will carry no query encoders: no package %s (extra onnx)", ", ".join(missing))
        return False
    method = from_pretrained(folder)
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        try:
            model, inputs = export_side(method, side)
        except Exception as error:  # a tower that ONNX cannot hold must not end a night
            reason = " ".join(str(error).split())[:300]
            log.warning("the release will carry no query encoder of side %s: %s", side, reason)
            sides[side] = {"missing": reason}
            continue
        store.write(f"{path}/{side}.onnx", model)
        sides[side] = {"inputs": inputs, "sha256": sha256(model), "bytes": len(model)}
    index = {"version": VERSION, "code_length": method.code_length, "sides": sides}
    store.write(f"{path}/encoders.json", json.dumps(index, indent=1, sort_keys=True).encode())
    return True


def export_side(method: HashMethod, side: Side) -> tuple[bytes, dict[str, Any]]:
    """Return the ONNX model of a side's network, for one row at a time, and what it takes.

    One row at a time: its values then depend on no other row, as those of a night do.

    Raises:
        ValueError: a tower whose inputs only torch's side knows how to make.
    """
    network: SideNetwork = getattr(method, side)
    inputs, sample, dynamic = _inputs(network, side)
    with tempfile.TemporaryDirectory() as folder, _quietly(), torch.no_grad():
        file = Path(folder) / "side.onnx"
        torch.onnx.export(
            network.eval().cpu(),
            (sample,),
            file,
            input_names=["inputs"],
            output_names=["values"],
            dynamic_shapes=(dynamic,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return file.read_bytes(), inputs


def _inputs(network: SideNetwork, side: Side) -> tuple[dict[str, Any], Tensor, dict[int, Any] | None]:
    """Return what a network takes, one row of it, and which of its lengths vary."""
    tower = getattr(network, "tower", network)  # levels are built on a tower and take its inputs
    if isinstance(tower, BagOfWords):
        words = {"word_buckets": tower.buckets, "pair_buckets": tower.pair_buckets}
        facts = {"kind": "words", "tokeniser": TOKENISER_VERSION, "max_words": tower.max_words, **words}
        return facts, torch.tensor([[1, 1, 0]]), {1: torch.export.Dim.DYNAMIC}
    if isinstance(tower, GivenFeatures):
        return {"kind": "features", "width": tower.width}, torch.zeros(1, tower.width), None
    if isinstance(tower, _PIXELS):
        size = tower.image_size or 0
        grey = np.full((1, size, size, 3), 127, np.uint8)
        return {"kind": "pixels", "image_size": size}, torch.from_numpy(grey), None
    raise ValueError(
        f"{side} tower {type(tower).__name__} prepares its inputs in ways that only torch has here"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what the exporter tells about operators that no tower has."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
