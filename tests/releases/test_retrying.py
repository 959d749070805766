"""Retried addresses lead to new ones, the same for everyone, as often as they are retried."""

import pyarrow as pa
import pytest

from pipeline.releases.addresses import digest_json
from pipeline.releases.manifest import ManifestError
from pipeline.releases.retrying import again, again_where, retried, retry
from pipeline.releases.storage import Storage

A, B, C = (digest_json(name) for name in "abc")


def test_a_retried_address_leads_elsewhere_and_the_others_stay(storage: Storage) -> None:
    assert retried(storage) == frozenset()
    retry(storage, [B, A])
    retries = retried(storage)
    assert again(C, retries) == C
    first = again(A, retries)
    assert first not in (A, B, again(B, retries))
    retry(storage, [first])
    second = again(A, retried(storage))
    assert second == again(first, retried(storage)) != first
    column = pa.chunked_array([[A, C], [B]])
    assert again_where(column, retried(storage)).to_pylist() == [second, C, again(B, retries)]
    assert again_where(column, frozenset()) is column


def test_asking_twice_for_the_same_is_asking_once(storage: Storage) -> None:
    assert retry(storage, [A, B]) == retry(storage, [B, A, A])
    assert len(storage.list("retries")) == 1


@pytest.mark.parametrize("content", [b"{}", b'["x"]', b"not json"])
def test_a_damaged_note_is_named(storage: Storage, content: bytes) -> None:
    storage.write("retries/x.json", content)
    with pytest.raises(ManifestError, match=r"retries/x.json: "):
        retried(storage)
