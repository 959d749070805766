"""Query encoders without torch: the codes of every built-in tower, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmh_models import build_method
from cmh_models.artefact import save_pretrained
from cmh_models.method import HashMethod, Side
from pipeline.corpus.recipe import DecodeLimits, InputRecipe
from pipeline.corpus.scenes import write_corpus
from pipeline.corpus.sides import decode_image
from pipeline.encoding.encoder import encode_side
from pipeline.encoding.query_encoders import export_side, keep_query_encoders
from pipeline.releases.addresses import model_path
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.encoders import QueryEncoder, open_encoder
from pipeline.search.retrieval import Release
from tests.search.stores import code_table, write_store

pytest.importorskip("onnxruntime", reason="the extra query is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

NEAR = 1e-5  # a bit whose value is nearer to 0 may differ
SMALL = {"width": 16, "bins": [1, 2], "windows": [30, 5]}
BUILT = {
    "descriptor": ("image", {"name": "jdsh"}, {"image": {"name": "descriptor", "image_size": 32}}),
    "cells": ("image", {"name": "jdsh"}, {"image": {"name": "descriptor", "image_size": 32, "cells": 6}}),
    "cnn": ("image", {"name": "jdsh"}, {"image": {"name": "cnn", "image_size": 32, "channels": [8, 16]}}),
    "bag": ("text", {"name": "jdsh"}, {}),
    "counts": (
        "text",
        {"name": "jdsh"},
        {"text": {"name": "bag", "word_buckets": 64, "trained_on": "description", "unit": True}},
    ),
    "features": ("image", {"name": "jdsh"}, {"image": {"name": "features", "width": 20}}),
    "levels": ("text", {"name": "hsidhn", "levels": SMALL}, {}),
    "pyramid": ("text", {"name": "hsidhn", "levels": SMALL | {"text_vectors": "pyramid"}}, {}),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[str]]:
    folder = tmp_path_factory.mktemp("scenes")
    write_corpus(folder, rows=100, rows_per_file=100, seed=3)
    rows = pq.read_table(next(folder.rglob("*.parquet")))
    names = rows.column_names
    image = next(name for name in ("image", "jpg") if name in names)
    text = next(name for name in ("caption", "text") if name in names)
    texts = [value if isinstance(value, str) else value[0] for value in rows[text].to_pylist()]
    return rows[image].to_pylist(), texts


def method_of(name: str) -> tuple[HashMethod, Side]:
    side, method, towers = BUILT[name]
    torch.manual_seed(0)
    small = {tower: {"hidden": 16} | settings for tower, settings in towers.items()}
    text = {"name": "bag", "hidden": 16, "word_buckets": 64, "pair_buckets": 64}
    return build_method({"code_length": 32, **method}, {"text": text, **small}).eval(), side


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_codes_equal_those_of_torch_but_for_bits_next_to_zero(
    scenes: tuple[list[bytes], list[str]], name: str
) -> None:
    method, side = method_of(name)
    data, facts = export_side(method, side)
    encoder = QueryEncoder(data, facts, side)
    pictures, texts = scenes
    if facts["kind"] == "words":
        codes, values = encoder.texts(texts), texts
    elif facts["kind"] == "pixels":
        recipe = InputRecipe(limits=DecodeLimits(), image_size=facts["image_size"])
        codes = encoder.pictures(pictures)
        values = np.stack([decode_image(picture, recipe) for picture in pictures])
    else:
        values = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
        codes = encoder.features(values)
    wanted = encode_side(method, side, values)
    assert len(np.unique(wanted, axis=0)) > 20
    with torch.inference_mode():
        logits = getattr(method, side)(method.collate(side, values)).numpy()
    differs = np.unpackbits(codes ^ wanted, axis=1).astype(bool)
    assert not (differs & (np.abs(logits) >= NEAR)).any(), f"{differs.sum()} bits of {differs.size} differ"
    print(f"{name}: {differs.sum()} of {differs.size} bits differ, {(np.abs(logits) < NEAR).sum()} near 0")


@pytest.mark.slow
def test_a_release_encodes_queries_without_torch_and_says_what_it_cannot(
    tmp_path: Path, scenes: tuple[list[bytes], list[str]]
) -> None:
    method, _ = method_of("descriptor")
    model = save_pretrained(method, tmp_path / "model", card={})
    store = Storage(tmp_path / "store")
    tables = {"image": [{"u": code_table(["a", "b"], size=4)}], "text": [{"u": code_table(["a"], size=4)}]}
    digest = write_store(store.uri, tables, code_length=32, model=model)
    release = Release.open(store.uri, digest=digest)
    with pytest.raises(ManifestError, match="the release carries no query encoders"):
        release.encode_text(["a red boat"])
    assert keep_query_encoders(tmp_path / "model", store)
    assert keep_query_encoders(tmp_path / "model", store)
    picture = tmp_path / "picture"
    picture.write_bytes(scenes[0][0])
    script = (
        "import sys\n"
        "from pipeline.search.retrieval import Release\n"
        "release = Release.open(sys.argv[1], digest=sys.argv[2])\n"
        "print(release.encode_text(['a red boat']).tobytes().hex())\n"
        "print(release.encode_image(open(sys.argv[3], 'rb').read()).tobytes().hex())\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'ray')])"
    )
    command = [sys.executable, "-c", script, store.uri, digest, str(picture)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    pixels = decode_image(scenes[0][0], InputRecipe(limits=DecodeLimits(), image_size=32))[None]
    assert said[0] == encode_side(method, "text", ["a red boat"]).tobytes().hex()
    assert said[1] == encode_side(method, "image", pixels).tobytes().hex()
    assert said[2] == "[]"
    with pytest.raises(ValueError, match="empty text"):
        release.encode_text([" "])
    with pytest.raises(ValueError, match="not an image"):
        release.encode_image(b"none")
    with pytest.raises(ValueError, match="image tower of this model takes pixels, not texts"):
        release.encoder("image").texts(["a"])
    check_damage(store, model)


def check_damage(store: Storage, model: str) -> None:
    folder = f"{model_path(model)}/onnx"
    whole = store.read(f"{folder}/text.onnx")
    store.write(f"{folder}/text.onnx", whole[:-1])
    with pytest.raises(ManifestError, match=r"text\.onnx is damaged: its sha256 is"):
        open_encoder(store, model, "text")
    index = json.loads(store.read(f"{folder}/encoders.json"))
    store.write(f"{folder}/encoders.json", json.dumps(index | {"version": 99}).encode())
    with pytest.raises(ManifestError, match="of a newer format than this version reads"):
        open_encoder(store, model, "image")
