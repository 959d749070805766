"""From the name of a format and what a user says about the source to the importer that reads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from pipeline.corpus.importers.coco import CocoCaptions
from pipeline.corpus.importers.embeddings import Embeddings
from pipeline.corpus.importers.mat import MatFeatures
from pipeline.corpus.importers.parquet import PictureParquet
from pipeline.corpus.importers.rows import Importer, InputFolder
from pipeline.corpus.importers.table import CaptionTable, find_table
from pipeline.corpus.importers.tars import PictureTars

ROLES = ("key", "image", "text", "labels", "split")
"""Our columns that a user may name the source's for."""


@dataclass(frozen=True)
class SourceOptions:
    """What a user says about a source. A format refuses those that it has no use for."""

    source: str
    max_bytes: int = 32 << 20  # of one picture
    pictures: str | None = None
    table: str | None = None
    labels: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    encoding: str | None = None
    delimiter: str | None = None


OpenPath = Callable[[str], tuple[InputFolder, str]]
"""Returns the folder behind a path or URI and, where that is one file, its name in the folder."""


def open_importer(name: str, options: SourceOptions, open_path: OpenPath) -> Importer:
    """Open a source in the format of this name.

    Raises:
        ValueError: an unknown format, an option that it has no use for, or a source that is not of it.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    build, used = FORMATS[name]
    for option in fields(options):
        if option.name in {"source", "max_bytes", *used}:
            continue
        if getattr(options, option.name) not in (None, (), {}):
            flag = {"columns": "column"}.get(option.name, option.name)
            raise ValueError(f"format {name} has no use for --{flag}; leave it out")
    wrong = [role for role in options.columns if role not in ROLES]
    if wrong:
        raise ValueError(f"--column names one of {', '.join(ROLES)}, got {wrong[0]!r}")
    return build(options, open_path)


def _img2dataset(options: SourceOptions, open_path: OpenPath) -> Importer:
    folder, name = open_path(options.source)
    names = [name] if name else folder.names(".tar") or folder.names(".parquet")
    if not names:
        packed = folder.names(".tar.gz", ".tgz")
        hint = f"; unpack {packed[0]} first" if packed else ""
        raise ValueError(f"{options.source}: no .tar and no .parquet file{hint}")
    kind = PictureTars if names[0].endswith(".tar") else PictureParquet
    return kind(folder, names, columns=options.columns, keep=options.keep, max_bytes=options.max_bytes)


def _csv(options: SourceOptions, open_path: OpenPath) -> Importer:
    folder, name = open_path(options.source)
    pictures = _folder(options.pictures, "--pictures", open_path) if options.pictures else folder
    if options.table is not None:
        folder, name = open_path(options.table)
    return CaptionTable(
        folder,
        name or find_table(folder),
        pictures=pictures,
        columns=options.columns,
        keep=options.keep,
        encoding=options.encoding or "utf-8",
        delimiter=options.delimiter,
        max_bytes=options.max_bytes,
    )


def _coco(options: SourceOptions, open_path: OpenPath) -> Importer:
    folder, name = open_path(options.source)
    if not name:
        raise ValueError(f"--from must be the captions JSON, got the folder {options.source}")
    return CocoCaptions(
        folder,
        name,
        pictures=_folder(options.pictures, "--pictures", open_path) if options.pictures else folder,
        instances=open_path(options.labels) if options.labels else None,
        max_bytes=options.max_bytes,
    )


def _mat(options: SourceOptions, open_path: OpenPath) -> Importer:
    folder, name = open_path(options.source)
    names = [name] if name else folder.names(".mat")
    if not names:
        raise ValueError(f"{options.source}: no .mat file")
    return MatFeatures(folder, names, columns=options.columns)


def _embeddings(options: SourceOptions, open_path: OpenPath) -> Importer:
    folder = _folder(options.source, "--from", open_path)
    return Embeddings(folder, columns=options.columns, keep=options.keep)


def _folder(path: str, flag: str, open_path: OpenPath) -> InputFolder:
    folder, name = open_path(path)
    if name:
        raise ValueError(f"{flag} must be a folder, got the file {path}")
    return folder


FORMATS: dict[str, tuple[Callable[[SourceOptions, OpenPath], Importer], frozenset[str]]] = {
    "img2dataset": (_img2dataset, frozenset({"columns", "keep"})),
    "csv": (_csv, frozenset({"pictures", "table", "columns", "keep", "encoding", "delimiter"})),
    "coco": (_coco, frozenset({"pictures", "labels"})),
    "mat": (_mat, frozenset({"columns"})),
    "embeddings": (_embeddings, frozenset({"columns", "keep"})),
}
"""Name of a format -> how it is opened, and the options that it uses."""
