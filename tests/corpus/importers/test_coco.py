"""COCO captions with and without the instances file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.importers.coco import CocoCaptions
from tests.corpus.importers.sources import MAX_BYTES, folder_of, import_into, picture

IMAGES = [{"id": 9, "file_name": "000009.jpg"}, {"id": 25, "file_name": "ünï côde.jpg"}]
CAPTIONS = [
    {"image_id": 9, "id": 1, "caption": 'a "quoted"\nmeal'},
    {"image_id": 25, "id": 2, "caption": "two giraffes"},
    {"image_id": 9, "id": 3, "caption": "plates of food"},
]


def coco(folder: Path, images: list[Any], captions: list[Any], instances: Any = None) -> CocoCaptions:
    """Write COCO's files, the pictures in a folder beside them, and open them."""
    pictures = folder / "train 2017"
    pictures.mkdir(parents=True)
    for shade, image in enumerate(IMAGES):
        (pictures / str(image["file_name"])).write_bytes(picture(shade))
    content = {"info": {}, "images": images, "annotations": captions}
    (folder / "captions.json").write_text(json.dumps(content))
    if instances is not None:
        (folder / "instances.json").write_text(json.dumps(instances))
    here = folder_of(folder)
    labels = (here, "instances.json") if instances is not None else None
    return CocoCaptions(
        here, "captions.json", pictures=folder_of(pictures), instances=labels, max_bytes=MAX_BYTES
    )


def test_a_picture_is_one_row_with_all_its_captions(tmp_path: Path) -> None:
    out = import_into(tmp_path / "out", coco(tmp_path / "in", IMAGES, CAPTIONS))
    assert out.rows == [
        {"key": "9", "image": picture(0), "text": ['a "quoted"\nmeal', "plates of food"]},
        {"key": "25", "image": picture(1), "text": ["two giraffes"]},
    ]


def test_labels_are_the_categories_in_the_order_of_their_ids(tmp_path: Path) -> None:
    instances = {
        "categories": [
            {"id": 90, "name": "giraffe"},
            {"id": 1, "name": "person"},
            {"id": 50, "name": "spoon"},
        ],
        "annotations": [
            {"image_id": 25, "category_id": 90, "segmentation": [[1, 2, 3]]},
            {"image_id": 25, "category_id": 1},
            {"image_id": 25, "category_id": 90},
        ],
    }
    out = import_into(tmp_path / "out", coco(tmp_path / "in", IMAGES, CAPTIONS, instances))
    assert [row["labels"] for row in out.rows] == [[], [0, 2]]
    assert out.ledger.labels == ["person", "spoon", "giraffe"]


def test_broken_entries_and_repeated_ids_are_rejects(tmp_path: Path) -> None:
    images = [*IMAGES, {"id": 9, "file_name": "000009.jpg"}, {"id": 30, "file_name": "gone.jpg"}, {"id": 31}]
    captions = [*CAPTIONS, {"image_id": 77, "caption": "of nothing"}]
    out = import_into(tmp_path / "out", coco(tmp_path / "in", images, captions))
    assert [row["key"] for row in out.rows] == ["9", "25"]
    assert out.reasons() == {
        "9": "duplicate key",
        "30": "missing picture",
        "31": "broken entry",
        "77": "caption of no picture",
    }


def test_a_picture_without_a_caption_is_kept_and_counted(tmp_path: Path) -> None:
    out = import_into(tmp_path / "out", coco(tmp_path / "in", IMAGES, CAPTIONS[:1]))
    assert [row["text"] for row in out.rows] == [['a "quoted"\nmeal'], None]
    assert out.ledger.rows_without_text == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', r"is not JSON, or was cut short"),
        (b'{"images": [], "annotations": "\xe9"}', r"is not UTF-8"),
        (b"[1, 2]", r"must hold the lists images and annotations, as COCO's do; found: list"),
        (b'{"a": 1, "b": 2}', r"found: a, b"),
        (b'{"images": [], "annotations": [{"category_id": 1}]}', r"hold no captions; give the captions file"),
    ],
)
def test_a_file_of_another_layout_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(content)
    here = folder_of(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        CocoCaptions(here, "c.json", pictures=here, max_bytes=MAX_BYTES)
    assert "\n" not in str(raised.value)
    assert "c.json" in str(raised.value)
