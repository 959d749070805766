"""Putting the bytes of pictures into rows that name a file: a few reads at a time, in order."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipeline.corpus.importers.rows import ImportReject, InputFolder, Row, reject

READERS = 8
WINDOW = 64
GIVE_UP_AFTER = 100
"""Missing pictures, before one was found, after which it is the folder that is wrong."""


def load_pictures(
    items: Iterable[Row | ImportReject], folder: InputFolder, *, max_bytes: int
) -> Iterator[Row | ImportReject]:
    """Replace the path under `image` by the bytes of that file, or the row by a reject.

    Raises:
        ValueError: the first hundred pictures are all missing.
    """
    found = missing = 0

    def load(item: Row | ImportReject) -> Row | ImportReject:
        if isinstance(item, ImportReject):
            return item
        try:
            return item | {"image": folder.read_picture(item["image"], max_bytes=max_bytes)}
        except UnicodeEncodeError:  # bytes of another encoding, carried as lone surrogates
            return ImportReject(item["where"], "", "path not UTF-8", f"got {item['image']!r}")
        except ValueError as error:
            return reject(item["where"], item["key"], str(error))

    items = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        while window := list(islice(items, WINDOW)):
            for item in pool.map(load, window):
                if not isinstance(item, ImportReject):
                    found += 1
                elif item.reason == "missing picture":
                    missing += 1
                    if not found and missing == GIVE_UP_AFTER:
                        raise ValueError(
                            f"the first {missing} pictures are not there: {item.error}; "
                            "say where they are with --pictures FOLDER"
                        )
                yield item
