"""From a text or a picture to a packed code without torch: the ONNX towers that a release's model carries.

Needs onnxruntime and Pillow (extra `query`). Texts are tokenised and pictures decoded by the code that did it
for the rows; codes equal those of torch but for bits whose value is a rounding error away from 0.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmh_models.words import TOKENISER_VERSION, token_ids
from pipeline.codes import pack
from pipeline.corpus.recipe import DecodeLimits, InputRecipe
from pipeline.corpus.sides import decode_image, decode_text
from pipeline.releases.addresses import model_path, sha256
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage

_VERSION = 1
_LIMITS = DecodeLimits()


class QueryEncoder:
    """The tower of one side. Safe to use from several threads; a row's code depends on no other row."""

    def __init__(self, model: bytes, inputs: dict[str, Any], side: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("encoding queries needs onnxruntime; install the extra `query`") from error
        options = onnxruntime.SessionOptions()
        # Sums in one order whatever the machine; many queries at once are many threads of the caller's.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs, self.side = inputs, side

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts.

        Returns:
            (N, S) uint8 packed codes.
        Raises:
            ValueError: a text is empty or too large, or the tower takes features.
        """
        self._check("words", "texts")
        facts = self.inputs
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string")
        rows = [decode_text(text.encode(), _LIMITS.max_text_bytes) for text in texts]
        tokens = [
            token_ids(
                [row], facts["word_buckets"], pair_buckets=facts["pair_buckets"], max_words=facts["max_words"]
            )
            for row in rows
        ]
        return self.codes(tokens)

    def pictures(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Encode pictures, each the bytes of a file.

        Returns:
            (N, S) uint8 packed codes.
        Raises:
            ValueError: a picture cannot be decoded, or the tower takes features.
        """
        self._check("pixels", "pictures")
        recipe = InputRecipe(limits=_LIMITS, image_size=self.inputs["image_size"])
        return self.codes([decode_image(data, recipe)[None] for data in pictures])

    def features(self, features: np.ndarray) -> np.ndarray:
        """Encode (N, D) features.

        Raises:
            ValueError: another width, or the tower takes texts or pictures.
        """
        self._check("features", "features")
        rows = np.asarray(features, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.inputs["width"]:
            raise ValueError(f"features must be (rows, {self.inputs['width']}), got {rows.shape}")
        return self.codes([row[None] for row in rows])

    def codes(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Return the (N, S) packed codes of N prepared rows, (1, ...) each."""
        return pack(self.values(rows))

    def values(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Return the (N, L) float32 values of N prepared rows, whose signs are the codes."""
        made = [self._session.run(["values"], {"inputs": row})[0] for row in rows]
        length = int(self._session.get_outputs()[0].shape[1])
        return np.concatenate([np.empty((0, length), np.float32), *made])

    def _check(self, kind: str, what: str) -> None:
        if self.inputs["kind"] != kind:
            raise ValueError(f"the {self.side} tower of this model takes {self.inputs['kind']}, not {what}")


def open_encoder(storage: Storage, model: str, side: str) -> QueryEncoder:
    """Open the tower of a side of a model in a store.

    Raises:
        ManifestError: the model carries no such encoder, or it is damaged or of a newer format.
        ImportError: onnxruntime is not installed.
    """
    folder = f"{model_path(model)}/onnx"
    where = storage.where(folder)
    try:
        index = json.loads(storage.read(f"{folder}/encoders.json"))
        facts = index["sides"][side]
        if index["version"] > _VERSION or facts.get("inputs", {}).get("tokeniser", 0) > TOKENISER_VERSION:
            raise ManifestError(f"{where} is of a newer format than this version reads: update hashfleet")
        if "missing" in facts:
            raise ManifestError(
                f"{where}: no query encoder of side {side!r}: {facts['missing']}; encode with torch"
            )
        data = storage.read(f"{folder}/{side}.onnx")
    except FileNotFoundError as error:
        raise ManifestError(
            f"{where}: the release carries no query encoders (its night had no package onnx, or its model "
            "was collected); encode with torch, or see encode.query_encoders"
        ) from error
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{where}/encoders.json cannot be read ({error}); delete {where}") from error
    if sha256(data) != facts["sha256"]:
        raise ManifestError(
            f"{where}/{side}.onnx is damaged: its sha256 is {sha256(data)}, encoders.json names "
            f"{facts['sha256']}; delete {where}"
        )
    return QueryEncoder(data, facts["inputs"], side)
