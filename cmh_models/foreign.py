"""Networks and tokenisers of transformers and timm, imported when a tower first needs them."""

import json
from typing import Any

import torch
from torch import nn


def transformers_network(config: dict[str, Any], side: str) -> nn.Module:
    """Return a randomly initialised encoder of transformers.

    Raises:
        ValueError: the package is missing, or it knows no such encoder.
    """
    transformers = imported("transformers", f"towers.{side}")
    try:
        network: nn.Module = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.float32
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"towers.{side}: transformers cannot build this network: {one_line(error)}"
        ) from error
    return without_pooler(network)


def without_pooler(network: nn.Module) -> nn.Module:
    """Take off the layer that pools: weights that nothing uses would never have a gradient."""
    for module in list(network.modules()):
        if isinstance(getattr(module, "pooler", None), nn.Module):
            setattr(module, "pooler", None)  # noqa: B010
    return network


def timm_network(architecture: str) -> Any:
    """Return the stages of a network of timm, with random weights.

    Raises:
        ValueError: the package cannot be imported, or it knows no such network.
    """
    timm = imported("timm", "towers.image")
    try:
        return timm.create_model(architecture, features_only=True, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"towers.image: timm cannot build {architecture!r}: {one_line(error)}") from error


def timm_weights(architecture: str, file: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the weights of a network's stages as timm reads them from a file, and which the file lacks.

    timm leaves what it does not find as it was drawn, and says nothing: so they are drawn twice.

    Raises:
        ValueError: the file is of another network.
    """
    timm = imported("timm", "towers.image")
    given = {"features_only": True, "pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    drawn: list[dict[str, torch.Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            try:
                drawn.append(timm.create_model(architecture, **given).state_dict())
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"towers.image: weights in {file} do not fit: {one_line(error)}") from error
    state, other = drawn
    return state, sorted(name for name, value in state.items() if not torch.equal(value, other[name]))


def imported(package: str, where: str) -> Any:
    """Import one of the packages of the extra, when a tower first needs it.

    Raises:
        ValueError: it is missing, or does not load.
    """
    try:
        return __import__(package)
    except (ImportError, RuntimeError) as error:  # timm without a torchvision that fits raises the latter
        raise ValueError(
            f"{where} is a {package} tower and {package} cannot be imported here ({one_line(error)}): "
            "pip install 'hashfleet[backbones]'"
        ) from error


def tokeniser(vocabulary: str, max_tokens: int) -> Any:
    """Return the tokeniser of a tokenizer.json, which cuts texts at so many tokens.

    Raises:
        ValueError: the text is no tokeniser, or the package is missing.
    """
    tokenizers = imported("tokenizers", "towers.text")
    try:
        made = tokenizers.Tokenizer.from_str(vocabulary)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"towers.text.vocabulary is no tokeniser: {one_line(error)}") from error
    made.no_padding()
    made.enable_truncation(max_tokens)
    return made


def spelled(vocabulary: str) -> str:
    """Return a tokenizer.json in the one spelling in which it is kept and compared.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        value = json.loads(vocabulary)
    except ValueError as error:
        raise ValueError(f"the vocabulary of a tokeniser must be JSON: {error}") from error
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def one_line(error: BaseException) -> str:
    """Return what an error says, short and in one line."""
    return " ".join(str(error).split())[:200]
