"""The name of a model folder: a digest of its files. No torch, so that asking for a name costs no import."""

import hashlib
from pathlib import Path

CONTENT = ("config.json", "model.safetensors", "preprocessing.json", "tokeniser.json")
"""The files of a model; its card is none of them."""


def artefact_digest(folder: Path) -> str:
    """Return the digest of a model folder: 32 hex digits over all its files but the card.

    Raises:
        ValueError: a file is missing.
    """
    folder = Path(folder)
    digest = hashlib.blake2b(digest_size=16)
    for name in CONTENT:
        digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of a model; ValueError when it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} is no model artefact: it has no {path.name}") from error
