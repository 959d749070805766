"""Where a run's rows come from: the source of `data.path`, drawn first if it is the built-in corpus."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config import Config, ScenesConfig
from pipeline.encoding.decoding import Source, one_line
from pipeline.releases.addresses import digest_json
from pipeline.releases.planning import cut_files, cut_row_groups, files_to_open, list_table
from pipeline.releases.storage import SourceFile, list_source, source_root

log = logging.getLogger(__name__)

REQUESTS = 16
"""Threads that wait for the storage while large files are opened."""

_EMPTY = "{uri} holds no .parquet file: an empty corpus; see {setting}, or have import_data make such files"


def source_uri(config: Config, *, draw: bool = True) -> str:
    """Return the source as a URI or an absolute path, which means the same to every process of the run.

    With `data.scenes` and nothing at a local `data.path`, the corpus is drawn there, unless `draw` is false.

    Raises:
        ValueError: no path is given, or the built-in corpus is asked for at a URI.
    """
    path = config.require("data.path")
    scenes = config.data.scenes
    if "://" in path:
        if scenes is not None:
            raise ValueError(
                f"data.scenes draws into a local folder, got data.path {path}; drop one of the two"
            )
        return path
    folder = absolute(path)
    if draw and scenes is not None and not Path(folder).exists():
        _draw(Path(folder), scenes)
    return folder


def absolute(path: str) -> str:
    """Return a path of this machine as an absolute one, a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def source_digest(uri: str) -> str:
    """Return a digest of the bytes of all units of a source, in the order of their paths; reads them all."""
    filesystem, root = source_root(uri).filesystem()
    shas = []
    for unit in source_files(uri):
        digest = hashlib.sha256()
        with filesystem.open_input_file(f"{root}/{unit.path}") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        shas.append(digest.hexdigest())
    return digest_json(shas)


def undrawn(config: Config) -> bool:
    """Tell whether the source is the built-in corpus and would have to be drawn first; a dry run must not."""
    path = config.require("data.path")
    drawn = "://" in path or Path(path).expanduser().exists()
    if config.data.scenes is None or drawn:
        return False
    log.info("would draw %d scenes into %s first", config.data.scenes.rows, path)
    return True


def source_files(uri: str, *, setting: str = "data.path") -> list[SourceFile]:
    """List the units of a source, which must have some.

    Args:
        setting: that names the source, to be named in errors.
    Raises:
        ValueError: nothing is there, or no Parquet file.
    """
    try:
        files = list_source(uri)
    except FileNotFoundError as error:
        raise ValueError(f"{error}; see {setting}") from error
    if not files:
        raise ValueError(_EMPTY.format(uri=uri, setting=setting))
    return files


def list_units(
    uri: str, source: Source, parent_units: pa.Table, *, limit: int
) -> tuple[pa.Table, dict[str, str]]:
    """List the units of a source, which must have some; reads the footers of new large files and no other.

    Args:
        parent_units: table `units` of the parent release.
        limit: bytes beyond which a file is cut.
    Returns:
        One row per unit (planning.SOURCE_UNITS), sorted by path and range; and by path why the footers of
        some files could not be read. Each of these stands there whole, and is to be refused.
    Raises:
        ValueError: nothing is there, or no Parquet file.
    """
    try:
        files = list_table(uri)
    except FileNotFoundError as error:
        raise ValueError(f"{error}; see data.path") from error
    if not len(files):
        raise ValueError(_EMPTY.format(uri=uri, setting="data.path"))
    large = [SourceFile(**row) for row in files_to_open(files, parent_units, limit=limit).to_pylist()]

    unread: dict[str, str] = {}

    def ranges(file: SourceFile) -> list[tuple[int, int]]:
        try:
            with source.open(file) as opened:
                return cut_row_groups(_sizes(opened.metadata), limit)
        except Exception as error:  # whatever a broken file leads the readers to
            unread[file.path] = one_line(error)
            return []

    with ThreadPoolExecutor(REQUESTS) as pool:
        found = dict(zip([file.path for file in large], pool.map(ranges, large), strict=True))
    return cut_files(files, parent_units, found), unread


def _sizes(metadata: pq.FileMetaData) -> list[int]:
    """Return the bytes of every row group in its file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]


def _draw(folder: Path, scenes: ScenesConfig) -> None:
    """Draw the corpus beside its place and move it there, so that half of it is never taken for all."""
    from pipeline.corpus.scenes import write_corpus  # loads what a night over standing files has no need of

    log.info("drawing %d scenes into %s", scenes.rows, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".drawing-") as temporary:
        made = Path(temporary) / "scenes"
        for split, start, rows in (
            ("query", 0, scenes.queries),
            (scenes.split, scenes.queries, scenes.rows - scenes.queries),
        ):
            if rows > 0:
                write_corpus(made, rows, scenes.rows_per_file, scenes.seed, start=start, split=split)
        made.rename(folder)
