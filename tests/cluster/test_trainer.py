"""What is passed on when ranks fail: the words of the one that failed, in one line."""

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.trainer import _last_words

LOST = "Traceback ...\nRuntimeError: [pair.cc:537] Read error: Connection reset by peer."
OWN = (
    "Traceback (most recent call last):\n  File x\nValueError: part-3.parquet: none of 20 rows can be decoded"
)


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ({0: LOST, 1: OWN}, "rank 1: ValueError: part-3.parquet: none of 20 rows can be decoded"),
        ({0: OWN, 1: OWN}, "rank 0: ValueError: part-3.parquet: none of 20 rows can be decoded"),
        ({1: LOST}, "rank 1: RuntimeError: [pair.cc:537] Read error: Connection reset by peer."),
        ({0: ""}, "rank 0: RuntimeError"),
        ({}, "all of it"),
    ],
)
def test_the_failing_rank_speaks_and_not_those_that_lost_it(failures: dict[int, str], words: str) -> None:
    error = WorkerGroupError("all of it", {rank: RuntimeError(text) for rank, text in failures.items()})
    assert _last_words(error) == words
