"""What a run asks for and a cluster lacks, said in one line."""

import pytest

from cluster.resources import Request, wait_for


@pytest.mark.parametrize(
    ("request_", "there", "message"),
    [
        (
            Request(2, 1),
            {"CPU": 1.0},
            "the run asks for 2 CPUs and the cluster has 1: lower resources.workers",
        ),
        (Request(3, 0.5), {"CPU": 1.0}, "asks for 1.5 CPUs and the cluster has 1"),
        (Request(1, 1, gpu=True), {"CPU": 8.0}, "resources.gpu is true but the cluster has no GPU"),
        (Request(4, 1, gpu=True), {"CPU": 8.0, "GPU": 2.0}, "asks for 4 GPUs and the cluster has 2"),
    ],
)
def test_what_is_missing_is_said_with_what_was_asked_and_what_is_there(
    request_: Request, there: dict[str, float], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        wait_for(request_, seconds=0, totals=lambda: there)


@pytest.mark.parametrize(
    ("request_", "there"),
    [
        (Request(2, 1), {"CPU": 2.0}),
        (Request(2, 0.5), {"CPU": 1.0}),
        (Request(2, 1, gpu=True), {"CPU": 2.0, "GPU": 2.0}),
    ],
)
def test_exactly_enough_is_enough(request_: Request, there: dict[str, float]) -> None:
    wait_for(request_, seconds=0, totals=lambda: there)


def test_a_cluster_that_grows_is_waited_for_and_the_wait_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sizes = iter([1.0, 1.0, 4.0])
    wait_for(Request(2, 1), seconds=60, totals=lambda: {"CPU": next(sizes)})
    assert next(sizes, None) is None
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("the run asks for 2 CPUs and the cluster has 1: lower resources.workers or ")
    assert told.endswith("; waiting up to 60 s for nodes that join (resources.worker_timeout)")


def test_the_wait_ends_and_says_how_long_it_was() -> None:
    with pytest.raises(RuntimeError, match=r"the cluster has 1.*waited 0\.01 s, resources\.worker_timeout"):
        wait_for(Request(2, 1), seconds=0.01, totals=lambda: {"CPU": 1.0})
