"""A folder that one rank of a node makes and all of them read."""

from pathlib import Path

from pipeline.learning.gather import rank
from pipeline.learning.once import made_once
from tests.learning.ranks import Ranks
from tests.processes import wait_until


def make(target: Path) -> None:
    target.mkdir()
    (target / "file").write_text("whole")


def read(name: str) -> tuple[str, Path]:
    with made_once(name, make) as (folder, _):
        assert folder is not None
        return (folder / "file").read_text(), folder


def test_all_ranks_read_it_and_it_is_gone_afterwards(ranks: Ranks, tmp_path: Path) -> None:
    found = ranks.call(read, f"read {tmp_path}")
    assert [text for text, _ in found] == ["whole", "whole"]
    assert not any(folder.parent.exists() for _, folder in found)


def refuse(name: str, left: Path) -> tuple[str, Path]:
    """Refuse what was read, the first rank before the other one has looked; return why, and the folder."""
    folder = None
    try:
        with made_once(name, make) as (folder, _):
            assert folder is not None
            if rank():
                wait_until(left.exists, seconds=60)
            raise ValueError((folder / "file").read_text())
    except (ValueError, OSError) as error:
        left.touch()
        assert folder is not None
        return f"{type(error).__name__}: {error}", folder


def test_a_rank_that_refuses_what_it_reads_takes_it_from_no_other(ranks: Ranks, tmp_path: Path) -> None:
    found = ranks.call(refuse, f"refuse {tmp_path}", tmp_path / "left")
    assert [error for error, _ in found] == ["ValueError: whole"] * 2
    assert not any(folder.parent.exists() for _, folder in found)


def broken(target: Path) -> None:
    raise RuntimeError("the store is away")


def fail(name: str) -> str:
    with made_once(name, broken) as (folder, error):
        assert folder is None
        return error


def test_all_ranks_are_told_why_it_could_not_be_made(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.call(fail, f"fail {tmp_path}") == ["RuntimeError: the store is away"] * 2
