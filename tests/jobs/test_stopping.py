"""A night that is stopped, by Ctrl-C or by a scheduler: what it leaves, and that the next one goes on."""

import json
import signal
from pathlib import Path

import pytest

from cmh_models.artefact import save_pretrained
from jobs.stopping import sigterm_interrupts
from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage
from tests.encoding.sources import good_rows, tiny_method, write_rows
from tests.jobs.nights import content, run, settings
from tests.jobs.test_nightly import command, wait_until


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with `source`, of four small units, and `model`."""
    for n in range(4):
        write_rows(tmp_path / "source" / f"{n}.parquet", good_rows(8 * n, 8 * n + 8))
    save_pretrained(tiny_method(), tmp_path / "model", card={})
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("until", ["heads/main", "codes"])
def test_a_stopped_night_ends_with_130_and_gives_its_lease_back(
    world: Path, number: signal.Signals, until: str
) -> None:
    # A large tile makes every forward pass take so long that the night cannot end before the signal comes.
    overrides = settings(world / "source", world / "store", world / "model", "encode.tile=8000")
    process = command(overrides)
    folder = world / "store" / until
    wait_until(lambda: (folder.is_dir() and any(folder.iterdir())) or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["error"] == "interrupted"
    assert err.splitlines()[-1] == "nightly: interrupted"
    assert "Traceback" not in err
    store = Storage(world / "store")
    newest = Log(store).newest()
    assert newest is None or not newest.expires
    assert store.list("releases") == []
    again = run(overrides)
    undisturbed = run([*overrides, f"store.uri={world / 'other'}"])
    assert again.outputs == undisturbed.outputs
    assert content(world / "store") == content(world / "other")


@pytest.mark.parametrize("library", ["pydantic_core", "libarrow.so"])
def test_a_job_that_is_stopped_while_its_libraries_load_still_says_so(library: str) -> None:
    process = command([])
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: library in maps.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["error"] == "interrupted"
    assert err == "nightly: interrupted\n"


def test_sigterm_is_an_interrupt_for_as_long_as_a_job_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
