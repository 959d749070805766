from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.corpus.recipe import DecodeLimits, InputRecipe
from pipeline.corpus.schema import Columns

BASE = InputRecipe(image_size=64)


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"image_size": 96}, {"image"}),
        ({"resize": "crop"}, {"image"}),
        ({"image_width": 12}, {"image"}),
        ({"text_width": 12}, {"text"}),
        ({"columns": Columns(image="jpg")}, {"image"}),
        ({"columns": Columns(text_features="t5")}, {"text"}),
        ({"columns": Columns(key="uid")}, {"image", "text"}),
        ({"columns": Columns(labels="tags", split="part", passthrough=("url",))}, set()),
        ({"limits": DecodeLimits(max_pixels=10)}, {"image"}),
        ({"limits": DecodeLimits(max_image_bytes=10)}, {"image"}),
        ({"limits": DecodeLimits(max_text_bytes=10)}, {"text"}),
    ],
)
def test_a_digest_covers_what_its_side_depends_on_and_nothing_else(
    change: dict[str, Any], touched: set[str]
) -> None:
    changed = BASE.model_copy(update=change)
    assert {side for side in ("image", "text") if changed.digest(side) != BASE.digest(side)} == touched  # type: ignore[arg-type]


def test_the_sides_have_different_digests() -> None:
    assert InputRecipe().digest("image") != InputRecipe().digest("text")


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"resize": "stretch"}, {"image_sise": 64}, {"image_width": -1}]
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputRecipe.model_validate(wrong)
