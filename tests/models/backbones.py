"""A tiny picture encoder and a tiny text encoder as folders of transformers, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "boat",
    "two",
    "houses",
    "at",
    "night",
    "fish",
    "blue",
)


def write_image_folder(folder: Path, **options: Any) -> Path:
    """Write a vision transformer of two layers of 16 features for pictures of 16 pixels."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **(small | options))).save_pretrained(folder)
    scaling = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    return folder


def write_text_folder(folder: Path, **options: Any) -> Path:
    """Write a BERT of two layers of 12 features, with dropout, and a tokeniser of a dozen words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    small = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **(small | options))
    ).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokeniser = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokeniser.normalizer = normalizers.Lowercase()
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokeniser.save(str(folder / "tokenizer.json"))
    return folder
