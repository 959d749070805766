"""Forgotten rows leave code files and rejects, made anew or purged; nothing names them any more."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.decode import Reject
from pipeline.corpus.schema import sample_ids
from pipeline.encoding.codefile import (
    FORGOTTEN,
    CodeFile,
    CodeFileRecipe,
    EncodedSide,
    UnitRows,
    make_code_file,
)
from pipeline.encoding.purging import purge
from pipeline.releases.forgetting import Forgotten, forget, forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage

RECIPE = CodeFileRecipe("image", "a" * 32, "u" * 32, "f" * 32, "i" * 32, 16)
KEYS = [f"secret-{n}" for n in range(6)] + ["secret-2"]  # the last stands twice


def make(forgotten: Forgotten, bad: set[int]) -> CodeFile:
    """Make the code file of a unit in which the rows `bad` cannot be decoded."""
    rows = np.array([row for row in range(len(KEYS)) if row not in bad], np.int64)
    side = EncodedSide(
        read=len(KEYS),
        absent=0,
        rows=rows,
        hashes=np.zeros((len(rows), 16), np.uint8),
        codes=np.stack([rows, rows], axis=1).astype(np.uint8),
        rejects=tuple(Reject(row, KEYS[row], "not a picture", "no header") for row in sorted(bad)),
    )
    return make_code_file(RECIPE, UnitRows(pa.array(KEYS, pa.string())), [side], forgotten=forgotten)


def forgotten(folder: object, keys: list[str]) -> Forgotten:
    log = Log(Storage(str(folder)))
    if keys:
        forget(log, keys, ids=sample_ids(keys), owner="operator")
    return forgotten_keys(log)


@given(st.sets(st.integers(0, 6)), st.sets(st.sampled_from(KEYS), min_size=1))
def test_a_purged_file_is_the_one_that_is_made_without_the_keys(
    tmp_path_factory: pytest.TempPathFactory, bad: set[int], keys: set[str]
) -> None:
    hidden = forgotten(tmp_path_factory.mktemp("store"), sorted(keys))
    whole, wanted = make(Forgotten(), bad), make(hidden, bad)
    purged = purge(whole.codes, whole.rejects, hidden)
    assert purged is not None
    assert (purged.codes, purged.rejects, purged.ledger) == (wanted.codes, wanted.rejects, wanted.ledger)
    assert purged.ledger.balanced
    for data in (purged.codes, purged.rejects):
        named = pq.read_table(pa.BufferReader(data))["key"].to_pylist()
        assert keys.isdisjoint(named)
        assert not any(key.encode() in data for key in keys)
    left = pq.read_table(pa.BufferReader(purged.codes)).to_pylist()
    assert {row["key"] for row in left} == {KEYS[n] for n in range(6) if n not in bad} - keys
    assert purged.ledger.reasons[FORGOTTEN] == sum(key in keys for key in KEYS)


def test_a_file_without_a_forgotten_key_is_left_as_it_is(tmp_path: object) -> None:
    hidden = forgotten(tmp_path, ["elsewhere"])
    whole = make(Forgotten(), {1})
    assert purge(whole.codes, whole.rejects, hidden) is None
    assert make(hidden, {1}) == whole
