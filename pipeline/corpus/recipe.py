"""The recipe by which stored rows become tower inputs: columns, limits, picture size. In every address."""

import json
from hashlib import blake2b
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.corpus.pictures import FORMATS
from pipeline.corpus.schema import Columns, Side

DECODE_VERSION = 1
"""Part of every recipe digest: raise it when the same bytes give other values or other rejects."""


class DecodeLimits(BaseModel):
    """How large a value may be before its row is rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_image_bytes: int = Field(default=32 * 2**20, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_text_bytes: int = Field(default=2**20, gt=0)


class InputRecipe(BaseModel):
    """All that decides how a stored row becomes a tower's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: Columns = Columns()
    limits: DecodeLimits = DecodeLimits()
    image_size: int | None = Field(default=None, gt=0)  # side of the square given out; None for features
    resize: Literal["squash", "crop"] = "squash"
    image_width: int | None = Field(default=None, gt=0)  # of feature rows; None takes the column's
    text_width: int | None = Field(default=None, gt=0)

    def digest(self, side: Side) -> str:
        """Return 32 hex digits over all that one side's values depend on, and nothing of the other side."""
        mine = ("key", side, f"{side}_features")
        recipe: dict[str, Any] = {
            "version": DECODE_VERSION,
            "columns": {name: getattr(self.columns, name) for name in mine},
        }
        if side == "image":
            recipe["width"] = self.image_width
            recipe["limits"] = [self.limits.max_image_bytes, self.limits.max_pixels]
            recipe["square"] = [self.image_size, self.resize, FORMATS]
        else:
            recipe["width"] = self.text_width
            recipe["limits"] = [self.limits.max_text_bytes]
        if self.columns.updated is not None:  # a code file holds the tokens of its rows
            recipe["columns"]["updated"] = self.columns.updated
        return blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16).hexdigest()
