"""The built-in corpus as a source: drawn once, whole or not at all."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.source import source_uri


def test_the_corpus_is_drawn_once_and_its_first_rows_are_queries(tmp_path: Path) -> None:
    scenes = "data.scenes={rows: 12, rows_per_file: 5, queries: 4, split: retrieval, seed: 3}"
    config = load_config(overrides=[f"data.path={tmp_path}/c", scenes], environ={})
    folder = Path(source_uri(config))
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert source_uri(config) == str(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    rows = pq.read_table(folder, columns=["key", "split"]).sort_by("key").to_pydict()
    assert rows["split"] == ["query"] * 4 + ["retrieval"] * 8
    assert len(set(rows["key"])) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_corpus_at_a_uri_is_not_ours_to_draw() -> None:
    config = load_config(overrides=["data.path=s3://b/c", "data.scenes={}"], environ={})
    with pytest.raises(ValueError, match="draws into a local folder"):
        source_uri(config)
