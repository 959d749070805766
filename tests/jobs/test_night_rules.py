"""What a night does when the source changes, when a unit is broken, and when it must not work at all."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import save_pretrained
from jobs import build_index, encode, nightly
from jobs.command import run_job
from jobs.nights.leases import kept_alive
from pipeline.releases.heads import Log
from pipeline.releases.manifest import create_store, read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release
from tests.encoding.sources import BAD_ROWS, TOWERS, good_rows, many_rows, picture, tiny_method, write_rows
from tests.jobs.nights import content, run, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_pretrained(tiny_method(), folder, card={})
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three units of eight rows each."""
    for n in range(3):
        write_rows(tmp_path / "source" / f"{n}.parquet", good_rows(8 * n, 8 * n + 8))
    return tmp_path / "source"


@pytest.fixture
def overrides(source: Path, tmp_path: Path, model: Path) -> list[str]:
    return settings(source, tmp_path / "store", model, "encode.max_reject_fraction=1")


Command = Callable[..., tuple[int, dict, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a job by its arguments: exit code, result line, what it said."""

    def call(overrides: list[str], *arguments: str, job=nightly) -> tuple[int, dict, str]:  # type: ignore[no-untyped-def]
        words = [word for override in overrides for word in ("--set", override)]
        code = run_job(job.__name__.rpartition(".")[2], job, [*words, *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return call


def test_increments_give_the_release_of_a_full_rebuild(
    source: Path, tmp_path: Path, model: Path, overrides: list[str]
) -> None:
    first = run(overrides)
    write_rows(source / "1.parquet", good_rows(100, 109))
    write_rows(source / "3.parquet", good_rows(200, 204))
    (source / "0.parquet").unlink()
    second = run(overrides)
    assert (second.counts["units_total"], second.counts["units_encoded"]) == (3, 2)
    assert (second.counts["rows_encoded_image"], second.counts["rows_encoded_text"]) == (13, 13)
    rebuilt = run([*overrides, f"store.uri={tmp_path / 'other'}"])
    assert rebuilt.counts["units_encoded"] == 3
    assert rebuilt.outputs == second.outputs != first.outputs
    made = content(tmp_path / "other")
    made.pop(f"releases/{rebuilt.outputs['release']}.json")  # its notes tell what the gate could compare
    assert made.items() <= content(tmp_path / "store").items()
    release = Release.open(tmp_path / "store")
    assert release.rows("image") == release.rows("text") == 21


def test_a_new_text_tower_leaves_every_image_code_and_part(
    source: Path, tmp_path: Path, overrides: list[str]
) -> None:
    run(overrides)
    before = content(tmp_path / "store")
    method = tiny_method(TOWERS)
    method.text.bias.data += 0.5
    save_pretrained(method, tmp_path / "other_model", card={})
    second = run([*overrides, f"encode.model={tmp_path / 'other_model'}"], accept_new_model=True)
    assert (second.counts["rows_encoded_image"], second.counts["rows_encoded_text"]) == (0, 24)
    assert second.counts["parts_reused"] >= 1
    parts = [path for path in content(tmp_path / "store") if path.startswith("parts/") and path not in before]
    assert len(parts) == 2 * second.counts["parts_built"]


def test_a_refused_unit_keeps_its_codes_as_stale_until_it_is_mended(
    source: Path, tmp_path: Path, overrides: list[str]
) -> None:
    first = run(overrides)
    whole = (source / "1.parquet").read_bytes()
    (source / "1.parquet").write_bytes(whole[:-100])
    (source / "new.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(RuntimeError, match=r"2 unit\(s\) refused, .* allows 0; first: 1\.parquet: .*Parquet"):
        run(overrides)
    store = Storage(tmp_path / "store")
    assert Log(store).current_release() == first.outputs["release"]
    second = run([*overrides, "encode.max_refused_units=2"])
    assert (second.status, second.counts["units_refused"]) == ("done", 2)
    assert second.details["refused"].keys() == {"1.parquet", "new.parquet"}
    manifest = read_release(store, second.outputs["release"])
    stale = read_table(store, manifest, "units").filter(pc.field("stale"))
    assert stale["path"].to_pylist() == ["1.parquet"] * 2
    assert Release.open(store.uri).rows("text") == 24
    again = run([*overrides, "encode.max_refused_units=2"])
    assert again.outputs["release"] == second.outputs["release"]
    write_rows(source / "1.parquet", good_rows(8, 16))
    (source / "new.parquet").unlink()
    mended = run(overrides)
    assert mended.counts["units_encoded"] == 1
    assert not any(
        read_table(store, read_release(store, mended.outputs["release"]), "units")["stale"].to_pylist()
    )


def test_too_many_rejects_publish_nothing_and_their_codes_are_kept(
    source: Path, tmp_path: Path, overrides: list[str], command: Command
) -> None:
    write_rows(source / "bad.parquet", BAD_ROWS)
    code, line, said = command([*overrides, "encode.max_reject_fraction=0.1"])
    assert (code, line["status"]) == (1, "failed")
    assert "7 of 37 rows rejected on the image side, encode.max_reject_fraction allows 0.1" in said
    [named] = [
        path for path in content(tmp_path / "store") if f"of them are in bad.parquet: see {path}" in said
    ]
    assert named.startswith("rejects/")
    assert Log(Storage(tmp_path / "store")).current_release() is None
    code, line, _ = command([*overrides, "encode.max_reject_fraction=0.1"], "--max-reject-fraction", "0.5")
    assert (code, line["counts"]["units_encoded"], line["counts"]["rows_encoded"]) == (0, 0, 0)
    assert Release.open(tmp_path / "store").rows("image") == 28


def test_encode_then_build_index_leave_nightly_only_the_publishing(
    source: Path, tmp_path: Path, overrides: list[str], command: Command
) -> None:
    code, _, said = command(overrides, job=build_index)
    assert (code, "6 code file(s) are missing" in said) == (1, True)
    encoded = run(overrides, job=encode)
    assert encoded.counts["rows_encoded"] == 48
    planned = run(overrides, job=build_index, dry_run=True)
    built = run(overrides, job=build_index)
    assert planned.counts == built.counts
    before = content(tmp_path / "store")
    published = run(overrides)
    assert published.counts["rows_read"] == 0
    after = content(tmp_path / "store")
    assert {path for path in after if path.partition("/")[0] in ("codes", "parts")} == set(before)
    assert run(overrides, job=encode).counts["rows_encoded"] == 0


@pytest.mark.ray
def test_the_chain_runs_on_s3(ray_cluster: str, s3_server: str, model: Path, tmp_path: Path) -> None:
    where = f"{s3_server}/chain"
    folder = tmp_path / "source"
    write_rows(folder / "a.parquet", many_rows(0, 600), row_group_size=400)  # too many for the driver alone
    write_rows(folder / "b" / "c.parquet", BAD_ROWS)
    Storage(where).upload_folder(folder, "source")
    gate = [f"gate.max_{name}=1" for name in ("balance", "dead_bits", "collisions")]  # an untrained model
    overrides = settings(f"{where}/source", f"{where}/store", model, "encode.max_reject_fraction=1", *gate)
    first = run(overrides)
    assert (first.counts["units_encoded"], first.counts["rows_encoded_image"]) == (2, 604)
    release = Release.open(f"{where}/store", cache=tmp_path / "cache")
    assert release.digest == first.outputs["release"]
    assert (release.rows("image"), release.rows("text")) == (604, 606)
    before = {file.path: file for file in Storage(where).files()}
    second = run(overrides)
    assert second.outputs == {"release": first.outputs["release"]}
    assert {file.path: file for file in Storage(where).files()} == before


def test_a_held_lease_ends_the_run_with_exit_code_4(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    create_store(Storage(tmp_path / "store"))
    other = Log(Storage(tmp_path / "store"))
    assert other.acquire("someone else", 60) is not None
    code, line, said = command(overrides)
    assert (code, line["status"], line["holder"]) == (4, "locked", "someone else")
    assert "someone else holds the lease" in said
    assert not (tmp_path / "store" / "codes").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    code, line, said = command(overrides, "--dry-run")
    assert code == 0
    assert "encode image 0.parquet (new unit, " in said
    assert (line["counts"]["units_total"], line["counts"]["units_encoded"]) == (3, 3)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("job", [nightly, encode, build_index])
def test_a_dry_run_does_not_draw_the_corpus(
    overrides: list[str], tmp_path: Path, command: Command, job
) -> None:  # type: ignore[no-untyped-def]
    undrawn = [*overrides, f"data.path={tmp_path}/drawn", "data.scenes={rows: 4, rows_per_file: 2}"]
    before = sorted(tmp_path.rglob("*"))
    code, line, said = command(undrawn, "--dry-run", job=job)
    assert (code, line["status"], "would draw 4 scenes into" in said) == (0, "done", True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("wrong", ["gate.max_dead_bit=1", "index.part_boundry=1", "encode.model=nowhere"])
def test_what_a_run_would_refuse_is_refused_before_the_corpus_is_drawn_and_by_a_dry_run(
    overrides: list[str], tmp_path: Path, command: Command, wrong: str
) -> None:
    undrawn = [*overrides, f"data.path={tmp_path}/drawn", "data.scenes={rows: 4, rows_per_file: 2}", wrong]
    before = sorted(tmp_path.rglob("*"))
    for job in (nightly, encode, build_index):
        told = {command(undrawn, *arguments, job=job)[1]["error"] for arguments in ((), ("--dry-run",))}
        assert len(told) == 1, told
    assert sorted(path for path in tmp_path.rglob("*") if "runs" not in str(path)) == before


def test_a_source_without_the_columns_is_a_config_error_that_names_what_was_found(
    overrides: list[str], command: Command, tmp_path: Path
) -> None:
    code, line, said = command([*overrides, "data.columns.text=headline"])
    assert (code, line["status"]) == (2, "failed")
    assert "no column 'headline' (data.columns.text); found: key, image, text" in line["error"]
    assert said.splitlines()[-1].startswith("nightly: ")
    assert Log(Storage(tmp_path / "store")).acquire("next", 60) is not None, "the lease was not given back"


@pytest.mark.parametrize("broken", [b"junk", None])
def test_a_source_of_nothing_but_broken_units_is_one_clear_line(
    source: Path, overrides: list[str], command: Command, broken: bytes | None
) -> None:
    for path in source.iterdir():
        path.write_bytes(path.read_bytes()[:-9] if broken is None else broken)
    code, _, said = command(overrides)
    assert code == 1
    assert "3 unit(s) refused" in said.splitlines()[-1]


def test_a_source_without_rows_or_without_a_good_one_makes_no_release(
    source: Path, overrides: list[str], command: Command, tmp_path: Path
) -> None:
    for path in source.iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    code, line, _ = command(overrides)
    assert (code, "has no row in its units: an empty corpus" in line["error"]) == (2, True)
    write_rows(source / "0.parquet", [("a", b"no picture", " ")])
    code, line, _ = command(overrides)
    assert (code, "not one row has a code, on either side" in line["error"]) == (1, True)
    assert Log(Storage(tmp_path / "store")).current_release() is None


def test_an_empty_or_missing_source_is_a_config_error(
    source: Path, overrides: list[str], command: Command, tmp_path: Path
) -> None:
    for path in source.iterdir():
        path.unlink()
    code, line, _ = command(overrides)
    assert (code, "holds no .parquet file" in line["error"]) == (2, True)
    shutil.rmtree(source)
    code, line, _ = command(overrides)
    assert (code, "no such file or folder" in line["error"]) == (2, True)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encode.model=nowhere", "no model at 'nowhere'"),
        ("encode.model=", "encode.model is not set"),
        ("store.uri=", "store.uri is not set"),
        ("index.recipe=BIVF", "index.recipe: unknown index recipe"),
        ("gate.max_dead_bit=1", "--set: unknown key 'gate.max_dead_bit'; known: canary, "),
        (
            "gate.canary=/nowhere",
            "/nowhere: no such file or folder; expected .parquet files; see gate.canary",
        ),
        ("encode.max_reject_fraction=2", "--set: encode.max_reject_fraction: input should be less than or"),
    ],
)
def test_a_wrong_setting_ends_with_exit_code_2(
    overrides: list[str], command: Command, tmp_path: Path, override: str, said: str
) -> None:
    for arguments in (("--dry-run",), ()):
        code, line, _ = command([*overrides, override], *arguments)
        assert code == 2
        assert said in line["error"]
    assert not (tmp_path / "store" / "codes").exists()


def test_a_wrong_limit_ends_with_exit_code_2_by_the_name_of_its_setting(
    overrides: list[str], command: Command
) -> None:
    code, line, _ = command(overrides, "--max-reject-fraction", "nan")
    assert (code, line["error"]) == (
        2,
        "arguments: encode.max_reject_fraction: input should be less than or equal to 1, got nan",
    )


def test_a_store_inside_its_source_is_refused(
    source: Path, overrides: list[str], command: Command, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(source)
    for store in (source, source / "store", tmp_path / "link" / "store"):
        code, line, _ = command([*overrides, f"store.uri={store}"])
        assert (code, "lies inside data.path" in line["error"]) == (2, True)
    assert sorted(path.name for path in source.iterdir()) == ["0.parquet", "1.parquet", "2.parquet"]


def test_lost_parts_come_back_as_they_were_by_build_index(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    release = run(overrides).outputs["release"]
    store, before = Storage(tmp_path / "store"), content(tmp_path / "store")
    parts = [path for path in before if path.startswith("parts/")]
    for path in parts[::3]:
        store.delete(path)
    _, line, _ = command(overrides, "--dry-run", job=build_index)
    assert line["counts"]["parts_built"] > 0
    assert command(overrides, job=build_index)[1]["counts"] == line["counts"]
    assert content(tmp_path / "store") == before
    assert Release.open(store.uri).digest == release


def test_lost_codes_come_back_as_they_were_by_encode_under_a_new_channel(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    run(overrides)
    store, before = Storage(tmp_path / "store"), content(tmp_path / "store")
    # All codes of one side: whichever parts a boundary after each unit asks for, one of them is missing.
    codes = [path for path in before if path.startswith("codes/") and is_of_images(tmp_path / "store" / path)]
    for path in codes:
        store.delete(path)
    code, line, _ = command([*overrides, "index.part_boundary=1"])
    assert (code, "`hashfleet encode` under a new store.channel" in line["error"]) == (1, True)
    assert run([*overrides, "store.channel=mend"], job=encode).counts["units_encoded"] == len(codes)
    assert content(tmp_path / "store").items() >= before.items()


def is_of_images(code_file: Path) -> bool:
    """Tell whether a code file holds picture codes."""
    return pq.read_schema(code_file).metadata[b"hashfleet.side"] == b"image"


def test_a_unit_that_the_model_cannot_take_is_refused_and_the_night_says_why(
    tmp_path: Path, model: Path, command: Command
) -> None:
    (tmp_path / "source").mkdir()
    table = pa.table({"key": ["a"], "image_features": [[1.0, 2.0]], "text": ["a"]})
    pq.write_table(table, tmp_path / "source" / "features.parquet")
    write_rows(tmp_path / "source" / "pixels.parquet", [("b", picture(1), "b")])
    code, _, said = command(settings(tmp_path / "source", tmp_path / "store", model))
    assert code == 1
    assert "first: features.parquet: SchemaError" in said
    assert "column 'image_features' holds features, the image tower of the model takes pixels" in said


def test_a_store_that_does_not_fit_is_one_clear_line(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    run(overrides)
    save_pretrained(tiny_method(code_length=24), tmp_path / "longer", card={})
    code, line, _ = command([*overrides, f"encode.model={tmp_path / 'longer'}"])
    assert (code, "holds codes of 16 bits, the model makes 24" in line["error"]) == (2, True)
    store = Storage(tmp_path / "store")
    release = Log(store).current_release()
    store.delete(f"releases/{release}.json")
    code, line, _ = command(overrides)
    assert (code, f"there is no release {release} in this store" in line["error"]) == (1, True)
    store.delete("store.json")
    code, line, _ = command(overrides)
    assert (code, "has a log but no store.json; restore the file" in line["error"]) == (1, True)
    store.write("store.json", b'{"format": 99}')
    code, line, _ = command(overrides)
    assert (code, "has format 99, this version reads up to 1" in line["error"]) == (1, True)


def test_a_lease_is_renewed_while_work_goes_on_and_given_back_at_its_end(tmp_path: Path) -> None:
    channel = Log(Storage(tmp_path))
    lease = channel.acquire("a long night", 0.6)
    assert lease is not None
    renewed = threading.Event()
    with kept_alive(channel, lease, 0.6):
        for _ in range(1000):
            newest = channel.newest()
            if newest is not None and newest.expires > lease.expires + 0.6:
                renewed.set()
                break
            renewed.wait(0.01)
    assert renewed.is_set()
    assert channel.acquire("the next", 60) is not None
