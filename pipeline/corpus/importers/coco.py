"""COCO captions: one JSON with pictures and captions, and if wanted the instances JSON for labels."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.corpus.importers.pictures import load_pictures
from pipeline.corpus.importers.rows import Block, ImportReject, InputFolder, Row, block_rows, schema_of


class CocoCaptions:
    """One row a picture, with all its captions; the key is the picture's id.

    With an instances file the labels are the categories seen in a picture, numbered in the order of their
    ids. The JSON files are held in memory (captions_train2017 about 1 GB, instances without outlines less);
    the pictures are not.

    Args:
        pictures: the folder that `file_name` starts from.
        instances: path of the instances JSON in the same folder as `captions`, or None.
    Raises:
        ValueError: a file is not JSON or not of this layout.
    """

    def __init__(
        self,
        folder: InputFolder,
        captions: str,
        *,
        pictures: InputFolder,
        instances: tuple[InputFolder, str] | None = None,
        max_bytes: int,
    ) -> None:
        self.captions, self.pictures, self.max_bytes = captions, pictures, max_bytes
        content = _read(folder, captions, ("images", "annotations"))
        self.images: list[Any] = content["images"]
        self.texts: dict[Any, list[Any]] = defaultdict(list)
        for annotation in content["annotations"]:
            if "caption" not in annotation:
                raise ValueError(
                    f"{folder.where(captions)}: its annotations hold no captions; "
                    "give the captions file, and the instances file as --labels"
                )
            self.texts[annotation.get("image_id")].append(annotation["caption"])
        self.labels: dict[Any, set[int]] = defaultdict(set)
        self.label_names: list[str] = []
        if instances is not None:
            self._read_labels(*instances)
        ours = ["key", "image", "text", *(["labels"] if instances is not None else [])]
        self.schema = schema_of(ours, texts=True)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in the order of `images`."""
        items: Iterable[Row | ImportReject] = self._items()
        loaded = load_pictures(items, self.pictures, max_bytes=self.max_bytes)
        return block_rows(loaded, self.schema, self.captions)

    def _read_labels(self, folder: InputFolder, name: str) -> None:
        content = _read(folder, name, ("categories", "annotations"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.label_names = [str(category.get("name", category["id"])) for category in categories]
        numbers = {category["id"]: number for number, category in enumerate(categories)}
        for annotation in content["annotations"]:
            category = annotation.get("category_id")
            if category not in numbers:
                raise ValueError(
                    f"{folder.where(name)}: an annotation is of category {category!r}, which is not listed"
                )
            self.labels[annotation.get("image_id")].add(numbers[category])

    def _items(self) -> Iterator[Row | ImportReject]:
        pictured = set()
        for number, image in enumerate(self.images):
            where = f"{self.captions} images[{number}]"
            key, name = image.get("id"), image.get("file_name")
            pictured.add(key)
            if key is None or not name:
                yield ImportReject(where, str(key or ""), "broken entry", "it needs both id and file_name")
                continue
            row: Row = {"where": where, "key": str(key), "image": str(name)}
            row["text"] = [str(text) for text in self.texts.get(key, ()) if text]
            row["labels"] = sorted(self.labels.get(key, ()))
            yield row
        for key in self.texts.keys() - pictured:
            yield ImportReject(f"{self.captions} annotations", str(key), "caption of no picture")


def _read(folder: InputFolder, name: str, lists: tuple[str, ...]) -> dict[str, Any]:
    """Read a COCO file without the outlines of its instances, by far its largest part."""
    where = folder.where(name)
    try:
        content = json.loads(folder.read(name).decode("utf-8-sig"), object_hook=_without_outline)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON, or was cut short: {error}") from error
    if not isinstance(content, dict) or not all(_is_list_of_entries(content.get(name)) for name in lists):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{where}: must hold the lists {' and '.join(lists)}, as COCO's do; found: {found}")
    return content


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _is_list_of_entries(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
