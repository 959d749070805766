"""Where a run's rows come from: the source of `data.path`, drawn first if it is the built-in corpus."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.config import Config, ScenesConfig
from pipeline.corpus.scenes import write_corpus
from pipeline.releases.storage import SourceFile, list_source

log = logging.getLogger(__name__)


def source_uri(config: Config) -> str:
    """Return the source as a URI or an absolute path, which means the same to every process of the run.

    With `data.scenes` and nothing at a local `data.path`, the corpus is drawn there.

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
    folder = Path(path).expanduser().resolve()
    if scenes is not None and not folder.exists():
        _draw(folder, scenes)
    return str(folder)


def undrawn(config: Config) -> bool:
    """Tell whether the source is the built-in corpus and would have to be drawn first; a dry run must not."""
    path = config.require("data.path")
    drawn = "://" in path or Path(path).expanduser().exists()
    if config.data.scenes is None or drawn:
        return False
    log.info("would draw %d scenes into %s first", config.data.scenes.rows, path)
    return True


def source_files(uri: str) -> list[SourceFile]:
    """List the units of a source, which must have some.

    Raises:
        ValueError: nothing is there, or no Parquet file.
    """
    try:
        files = list_source(uri)
    except FileNotFoundError as error:
        raise ValueError(f"{error}; see data.path") from error
    if not files:
        raise ValueError(f"{uri} holds no .parquet file: an empty corpus; see data.path")
    return files


def _draw(folder: Path, scenes: ScenesConfig) -> None:
    """Draw the corpus beside its place and move it there, so that half of it is never taken for all."""
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
