"""Search the newest release of a store by a text, a picture or a packed code.

A text is looked up among the images (T2I), a picture among the texts (I2T); a code, in hex, needs
--direction. Text and picture are encoded by the model that the release was made with, or by encode.model
if its codes are the same. Hits are ordered by Hamming distance, then id, then key.

example:
  hashfleet search --set store.uri=runs/store --text "a small red circle" -k 5
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["search", *sys.argv[1:]]))

import argparse
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.command import Result
from jobs.config import Config
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import DIRECTIONS, QUERY_SIDES, Hits, Release

if TYPE_CHECKING:
    from cmh_models.method import HashMethod, Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="find images for this text")
    query.add_argument("--image", metavar="FILE", help="find texts for this picture")
    query.add_argument("--code", metavar="HEX", help="a packed code, two hex digits per byte")
    parser.add_argument("-k", type=int, default=10, help="number of hits (default: 10)")
    parser.add_argument("--direction", choices=list(DIRECTIONS), help="what a code asks for")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Open the release, encode the query, and print its nearest keys."""
    direction = _direction(args)
    store = Storage(config.require("store.uri"))
    release = Release.open(store.uri, config.store.channel, sides=[DIRECTIONS[direction]])
    if args.code is not None:
        code = _code_from_hex(args.code, release)
    else:
        code = _encode(config, args, release=release, store=store)
    hits = release.search(code, args.k, direction)
    asked = args.text or args.image or args.code
    _print(hits, f"{direction} {asked!r}, {release.rows(DIRECTIONS[direction])} codes")
    # A hash or a graph may find fewer than k: then there are fewer keys.
    found = zip(hits.keys[0], hits.distances[0].tolist(), hits.ids[0].tolist(), strict=False)
    return Result(
        outputs={"release": release.digest, "model": release.recipe.model},
        counts={"codes": release.rows(DIRECTIONS[direction]), "hits": len(hits.keys[0])},
        details={
            "direction": direction,
            "code": code[0].tobytes().hex(),
            "hits": [{"key": key, "distance": distance, "id": id_} for key, distance, id_ in found],
        },
    )


def _direction(args: argparse.Namespace) -> Any:
    own = "T2I" if args.text is not None else "I2T" if args.image is not None else None
    if own is None and args.direction is None:
        raise ValueError("--code needs --direction T2I (find images) or I2T (find texts)")
    if own is not None and args.direction not in (None, own):
        raise ValueError(f"a {QUERY_SIDES[own]} query is {own}, got --direction {args.direction}")
    return own or args.direction


def _code_from_hex(text: str, release: Release) -> np.ndarray:
    try:
        code = bytes.fromhex(text)
    except ValueError as error:
        raise ValueError(f"--code must be hex digits, two per byte, got {text!r}") from error
    if 8 * len(code) != release.code_length:
        raise ValueError(
            f"--code must be {release.code_length // 4} hex digits, for the {release.code_length}-bit codes "
            f"of release {release.digest}, got {2 * len(code)}"
        )
    return np.frombuffer(code, np.uint8)[None]


def _encode(config: Config, args: argparse.Namespace, *, release: Release, store: Storage) -> np.ndarray:
    """Encode a text or a picture. torch is imported here, so that a code is searched without it."""
    from pipeline.encoding.encoder import encode_side
    from pipeline.encoding.models import open_model

    side: Side = "text" if args.text is not None else "image"
    try:
        method = open_model(config.encode.model or release.recipe.model, store)
    except ValueError as error:
        if config.encode.model:
            raise
        raise ManifestError(
            f"the model of release {release.digest}: {error}; restore it, or name its folder as encode.model"
        ) from error
    if config.encode.model:
        _check_model(method, side, release=release, name=config.encode.model)
    if method.spec["towers"][side]["name"] == "features":
        raise ValueError(f"the {side} tower of this model takes features; search by --code instead")
    values = _text(args.text, config) if side == "text" else _pixels(args.image, method, config=config)
    return encode_side(method, side, values, tile=config.encode.tile)


def _check_model(method: "HashMethod", side: "Side", *, release: Release, name: str) -> None:
    from cmh_models.artefact import tower_fingerprint

    if method.code_length != release.code_length:
        raise ValueError(
            f"encode.model {name} gives {method.code_length}-bit codes, release {release.digest} holds "
            f"{release.code_length}-bit codes; leave encode.model out to use the release's own model"
        )
    own = {tower_fingerprint(method, side, device=device) for device in ("cpu", "cuda")}
    if release.recipe.fingerprints.get(side) not in own:
        raise ValueError(
            f"the {side} tower of encode.model {name} is not the one that release {release.digest} was made "
            "with; leave encode.model out to use the release's own model"
        )


def _text(text: str, config: Config) -> list[str]:
    from pipeline.corpus.sides import decode_text

    try:
        return [decode_text(os.fsencode(text), config.data.limits.max_text_bytes)]
    except ValueError as error:
        raise ValueError(f"--text: {error}") from error


def _pixels(path: str, method: "HashMethod", *, config: Config) -> np.ndarray:
    from pipeline.corpus.recipe import InputRecipe
    from pipeline.corpus.sides import decode_image

    if not Path(path).is_file():
        raise ValueError(f"--image: no file at {path}")
    recipe = InputRecipe(limits=config.data.limits, image_size=method.image_size)
    try:
        return decode_image(Path(path).read_bytes(), recipe)[None]
    except ValueError as error:
        raise ValueError(f"--image {path}: {error}") from error


def _print(hits: Hits, title: str) -> None:
    """Print the table of one query to stdout, above the result line."""
    print(f"{title}\n{'rank':>4} {'distance':>8}  key")
    for rank, (key, distance) in enumerate(zip(hits.keys[0], hits.distances[0], strict=False), 1):
        print(f"{rank:>4} {distance:>8}  {key}")
