"""Checkpoints: complete or refused, of this run or refused, and what follows is what would have followed."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pipeline.learning.checkpoint import (
    INDEX,
    CheckpointStore,
    Position,
    check_facts,
    drop_leftovers,
    newest_checkpoint,
    read_index,
    save_checkpoint,
)
from pipeline.learning.engine import LocalEngine
from pipeline.learning.resume import Resumed, open_engine
from pipeline.learning.training import Hooks, TrainConfig, fit, seed_step
from pipeline.releases.storage import Storage
from tests.learning.ranks import Ranks
from tests.learning.small import BareEngine, Rows, Small

CONFIG = TrainConfig(epochs=3, global_batch_size=16, learning_rate=0.01, checkpoint_every_epochs=1)
FACTS = {"method": "small", "sizes": (1, 2)}


def engine() -> LocalEngine:
    seed_step(3)
    return LocalEngine(Small(), CONFIG)


def resume(folder: Path, facts: Mapping[str, object]) -> Resumed:
    seed_step(4)
    return open_engine(Small(), CONFIG, {}, folder=folder, facts=facts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(engine(), tmp_path, Position(2, 11), facts=FACTS, metrics={"loss": 1.5})
    return tmp_path


def test_a_checkpoint_gives_back_its_position_and_metrics(saved: Path) -> None:
    assert resume(saved, FACTS).position == Position(2, 11)
    assert read_index(saved)["metrics"] == {"loss": 1.5}


def test_a_checkpoint_without_one_of_its_files_is_refused(saved: Path) -> None:
    (saved / "engine.pt").unlink()
    with pytest.raises(OSError, match=r"not a complete checkpoint: 1 of 1 files .* engine\.pt"):
        resume(saved, FACTS)


def test_a_file_cut_short_is_refused(saved: Path) -> None:
    file = saved / "engine.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match="cut short"):
        resume(saved, FACTS)


def test_a_folder_without_an_index_or_with_half_of_one_is_refused(saved: Path) -> None:
    index = (saved / INDEX).read_text()
    (saved / INDEX).write_text(index[:40])
    with pytest.raises(OSError, match="damaged"):
        read_index(saved)
    (saved / INDEX).unlink()
    with pytest.raises(OSError, match=f"has no {INDEX}"):
        read_index(saved)


def test_a_checkpoint_of_another_run_says_what_differs(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot go on .*: method was small, is large; keep the old"):
        resume(saved, FACTS | {"method": "large"})


def save_on_a_rank(folder: Path) -> None:
    from pipeline.learning.gather import rank

    own = folder / str(rank())
    own.mkdir(parents=True)
    save_checkpoint(BareEngine(Small()), own, Position(0, 1), facts={}, metrics={})


def test_a_checkpoint_is_complete_only_with_the_files_of_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    ranks.call(save_on_a_rank, tmp_path)
    merged = tmp_path / "0"
    with pytest.raises(OSError, match=r"1 of 2 files are missing or cut short, first rank-1\.pt"):
        read_index(merged)
    (tmp_path / "1" / "rank-1.pt").rename(merged / "rank-1.pt")
    assert read_index(merged)["world_size"] == 2


def test_a_resumed_run_ends_bit_equal_to_an_undisturbed_one(tmp_path: Path) -> None:
    rows, whole = Rows(56, 16), engine()
    undisturbed = fit(whole, rows, CONFIG, seed=3)

    class Killed(Exception):
        pass

    store = CheckpointStore(Storage(tmp_path), "checkpoints")

    def report(metrics: Mapping[str, float], folder: Path | None) -> None:
        store.report(metrics, folder)
        if metrics["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        fit(engine(), rows, CONFIG, seed=3, hooks=Hooks(report=report))
    with newest_checkpoint(Storage(tmp_path), "checkpoints") as folder:
        assert folder is not None
        found = resume(folder, {})
    assert found.position == Position(2, 6)
    rest = fit(found.engine, rows, CONFIG, seed=3, start=found.position)
    assert rest.losses == undisturbed.losses[6:]
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, found.engine.method.state_dict()[name]), name


def test_a_run_goes_on_from_a_checkpoint_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    rows, undisturbed = Rows(80, 16), fit(engine(), Rows(80, 16), CONFIG, seed=3)
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 2, "checkpoint_every_epochs": 2})
    store, steps = CheckpointStore(Storage(tmp_path), "checkpoints", keep=9), []

    def report(metrics: Mapping[str, float], folder: Path | None) -> None:
        if folder is not None:
            steps.append(metrics["step"])
            store.report(metrics, folder)

    fit(engine(), rows, config, seed=3, hooks=Hooks(report=report))
    assert steps == [2, 4, 6, 8, 10, 12, 14, 15]  # every second step, each second epoch and the last
    for step, epoch in ((4, 0), (6, 1), (14, 2)):
        folder = tmp_path / "checkpoints" / f"step-{step:012d}"
        found = resume(folder, {})
        assert found.position == Position(epoch, step)
        rest = fit(found.engine, rows, CONFIG, seed=3, start=found.position)
        assert rest.losses == undisturbed.losses[step:]
        assert rest.position == Position(3, 15)


def test_the_store_keeps_the_last_two_and_passes_over_one_cut_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(tmp_path)
    store = CheckpointStore(storage, "run/checkpoints")
    with newest_checkpoint(storage, "run") as nothing:
        assert nothing is None
    for step in (3, 6, 9):
        share = tmp_path / f"share-{step}"
        share.mkdir()
        save_checkpoint(engine(), share, Position(0, step), facts={}, metrics={})
        store.report({}, share)
    kept = sorted(file.parent.name for file in (tmp_path / "run").rglob(INDEX))
    assert kept == ["step-000000000006", "step-000000000009"]
    (tmp_path / "run/checkpoints/step-000000000009/engine.pt").unlink()
    with newest_checkpoint(storage, "run") as folder:
        assert folder is not None and read_index(folder)["step"] == 6
    assert "not a complete checkpoint" in caplog.text


@pytest.fixture
def uploads(tmp_path: Path) -> Storage:
    """A run whose ranks uploaded checkpoints of 3, 6, 6 and 9 steps, and half of one."""
    storage = Storage(tmp_path / "runs")
    for name, step in (("3", 3), ("6", 6), ("6-again", 6), ("9", 9)):
        share = tmp_path / name
        share.mkdir()
        save_checkpoint(engine(), share, Position(0, step), facts={}, metrics={})
        storage.upload_folder(share, f"run/checkpoint_{name}")
    storage.write("run/checkpoint_half/engine.pt", b"half")
    storage.write("run/checkpoint_snapshot.json", b"{}")
    storage.write("run/train/checkpoints/step-3/engine.pt", b"of one process")
    return storage


@pytest.mark.parametrize(
    ("kept", "dropped"),
    [
        (("checkpoint_6-again", "checkpoint_9"), ["checkpoint_3", "checkpoint_6", "checkpoint_half"]),
        (("checkpoint_6",), ["checkpoint_3", "checkpoint_6-again", "checkpoint_half"]),  # 9 is newer
        (("checkpoint_half",), []),  # not whole: the others are what the run has
        ((), []),
    ],
)
def test_what_nobody_keeps_goes_unless_a_run_might_go_on_from_it(
    kept: tuple[str, ...], dropped: list[str], uploads: Storage
) -> None:
    before = uploads.list("run")
    with newest_checkpoint(uploads, "run") as chosen:
        pass
    assert drop_leftovers(uploads, "run", kept, prefix="checkpoint_") == dropped
    gone = tuple(f"run/{name}/" for name in dropped)
    assert uploads.list("run") == [path for path in before if not path.startswith(gone or "nothing")]
    with newest_checkpoint(uploads, "run") as still:
        assert still == chosen


def test_what_differs_is_told_setting_by_setting() -> None:
    was = {"method": {"name": "jdsh", "code_length": 16, "weights": [1, 2]}, "rows": 7}
    now = {"method": {"name": "jdsh", "code_length": 32, "weights": (1, 2)}, "rows": 7}
    with pytest.raises(ValueError, match=r"of this run: method\.code_length was 16, is 32; keep the old"):
        check_facts({"facts": was}, now)
    now = {"method": {"name": "dbrc", "other": 1}, "rows": 7}
    with pytest.raises(ValueError, match=r"of this run: method\.name was jdsh, is dbrc; keep the old"):
        check_facts({"facts": was}, now)


def test_the_newest_is_found_on_object_storage_wherever_the_run_keeps_it(
    s3_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(f"{s3_server}/{tmp_path.name}")
    for place, step in (("train/checkpoints/one", 3), ("checkpoint_2", 6), ("checkpoint_3", 9)):
        share = tmp_path / place.rpartition("/")[2]
        share.mkdir()
        save_checkpoint(engine(), share, Position(0, step), facts={}, metrics={})
        storage.upload_folder(share, f"run/{place}")
    storage.write("run/checkpoint_3/engine.pt", b"half")
    with newest_checkpoint(storage, "run") as folder:
        assert folder is not None
        assert read_index(folder)["step"] == 6
    assert not folder.exists()
    assert "checkpoint_3 is not a complete checkpoint" in caplog.text
    with newest_checkpoint(storage, "another") as folder:
        assert folder is None
