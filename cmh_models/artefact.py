"""A trained model as a folder: settings and weights, no pickle, and nothing in it is ever executed.

    config.json          format, settings of method and towers, sha256 of the weights
    model.safetensors    weights and buffers
    preprocessing.json   what each side's network expects
    tokeniser.json       how texts become token ids, if they do; of a text backbone its whole tokeniser
    README.md            the card: metrics, protocol, data

The digest covers all but the card, so that a measured figure never changes a model's name.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmh_models import build_method
from cmh_models.artefact_digest import artefact_digest, file_sha256
from cmh_models.method import SIDES, HashMethod, Side
from cmh_models.words import TOKENISER_VERSION

__all__ = ["artefact_digest", "from_pretrained", "save_pretrained", "tower_fingerprint"]

FORMAT = 1


def save_pretrained(method: HashMethod, folder: Path, *, card: dict[str, Any]) -> str:
    """Write a model as a folder, which appears whole or not at all.

    Args:
        folder: must not exist, or hold an equal model: then only its card is renewed.
        card: what the README shows: metrics, protocol, data; plain JSON values.
    Returns:
        The digest of the model.
    Raises:
        FileExistsError: another model stands there.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(method, made, card)
        digest = artefact_digest(made)
        if folder.exists():
            if not _holds(folder, digest):
                raise FileExistsError(f"{folder} exists and holds something else; choose another folder")
            (made / "README.md").replace(folder / "README.md")
        else:
            made.chmod(0o755)  # mkdtemp makes folders that only their owner may read
            made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return digest


def from_pretrained(folder: Path) -> HashMethod:
    """Build the model that a folder holds, ready to encode.

    Raises:
        ValueError: the folder is no artefact, of a newer format, damaged, or its weights do not fit.
    """
    folder = Path(folder)
    config = _read_json(folder, "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise ValueError(f"{folder}/config.json is not that of a model artefact: no format number")
    if config["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {config['format']}, this version reads up to {FORMAT}: update hashfleet"
        )
    weights = folder / "model.safetensors"
    found = file_sha256(weights)
    if found != config.get("weights"):
        raise ValueError(f"{weights} is damaged: sha256 {found}, config.json says {config.get('weights')}")
    method = build_method(config.get("method", {}), _with_vocabulary(config.get("towers", {}), folder))
    try:
        method.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit its config.json: {' '.join(str(error).split())}") from error
    return method.eval()


def tower_fingerprint(method: HashMethod, side: Side, *, precision: str = "fp32", device: str = "cpu") -> str:
    """Return 32 hex digits that change with anything one side's codes depend on, and with nothing else.

    Args:
        precision: of the forward pass.
        device: class of the device, cpu or cuda: the last bit of a sum may differ between them.
    """
    network = getattr(method, side)
    digest = hashlib.blake2b(digest_size=16)
    facts = {
        "side": side,
        "code_length": method.code_length,
        "architecture": network.architecture(),
        "image_size": network.image_size,
        "precision": precision,
        "device": device,
    }
    digest.update(_canonical(facts))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _write(method: HashMethod, folder: Path, card: dict[str, Any]) -> None:
    state = {name: _single(tensor) for name, tensor in method.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read
    sides = {side: getattr(method, side) for side in SIDES}
    config = {
        "format": FORMAT,
        "code_length": method.code_length,
        "method": method.spec["method"],
        "towers": _without_vocabulary(method.spec["towers"]),
        "weights": file_sha256(folder / "model.safetensors"),
    }
    preprocessing = {
        side: {"image_size": network.image_size, **network.architecture()} for side, network in sides.items()
    }
    vocabulary = method.spec["towers"]["text"].get("vocabulary")
    tokeniser = (
        {
            "text": json.loads(vocabulary),
            "format": "tokenizer.json of the library tokenizers; token numbers count from 1, 0 is padding",
        }
        if vocabulary is not None
        else {
            "version": TOKENISER_VERSION,
            "words": "runs of word characters of the NFKC form, case-folded",
            "id": "1 + crc32(word) % word_buckets; pairs of neighbouring words after them; 0 is padding",
        }
    )
    for name, value in (
        ("config.json", config),
        ("preprocessing.json", preprocessing),
        ("tokeniser.json", tokeniser),
    ):
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(method, card), encoding="utf-8")


def _without_vocabulary(towers: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of towers without the tokeniser, which has a file of its own."""
    text = towers["text"]
    return towers | {"text": text | {"vocabulary": None}} if "vocabulary" in text else towers


def _with_vocabulary(towers: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of towers with the tokeniser of an artefact in them."""
    text = towers.get("text", {})
    if "vocabulary" not in text:
        return towers
    kept = _read_json(folder, "tokeniser.json")
    if not isinstance(kept, dict) or "text" not in kept:
        raise ValueError(f"{folder}/tokeniser.json holds no tokeniser of texts, config.json wants one")
    return towers | {"text": text | {"vocabulary": json.dumps(kept["text"])}}


def _single(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU; half-precision weights in single precision, in which they are used."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().to("cpu", torch.float32 if half else tensor.dtype, copy=True).contiguous()


def _card(method: HashMethod, card: dict[str, Any]) -> str:
    name = method.spec["method"]["name"]
    lines = [f"# {name}, {method.code_length} bits", "", "Cross-modal hash codes for images and texts.", ""]
    for heading, value in card.items():
        lines += [f"## {heading}", ""]
        if isinstance(value, dict):
            lines += ["| name | value |", "|---|---|"]
            lines += [f"| {key} | {entry} |" for key, entry in value.items()]
        else:
            lines.append(str(value))
        lines.append("")
    return "\n".join(lines)


def _holds(folder: Path, digest: str) -> bool:
    try:
        return artefact_digest(folder) == digest
    except ValueError:
        return False


def _read_json(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no model artefact: it has no {name}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / name} cannot be read: {error}") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
