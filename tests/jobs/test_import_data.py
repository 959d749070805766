"""import_data as a user runs it: every format from the command line to a folder that other jobs read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from jobs.cli import main
from pipeline.corpus.importers.opening import FORMATS
from pipeline.corpus.schema import Columns, resolve_columns
from pipeline.releases.storage import Storage, list_source
from tests.corpus.importers.sources import features, picture, write_tar


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave their run.json in a folder of the test."""
    monkeypatch.setenv("HASHFLEET_RUN__DIR", str(tmp_path / "runs"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Run the job; return its exit code and result line."""
    capsys.readouterr()
    code = main(["import_data", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def write_sources(folder: Path) -> dict[str, list[object]]:
    """Write a small source of every format; return the arguments that read it."""
    folder.mkdir()
    (folder / "my pictüres").mkdir()
    for n in range(3):
        (folder / f"my pictüres/{n} é.jpg").write_bytes(picture(n))
    lines = "".join(f'{n} é.jpg,"a ""{n}"",\nb"\n' for n in range(3))
    (folder / "my pictüres/captions.csv").write_text(f"image,caption\n{lines}gone.jpg,x\n")
    images = [{"id": n, "file_name": f"{n} é.jpg"} for n in range(3)]
    captions = [{"image_id": n, "caption": f"c {n}"} for n in range(3)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    write_tar(folder / "00000.tar", [(f"{n}.{e}", d) for n in range(3) for e, d in _sample(n).items()])
    savemat(folder / "FLICKR 25K.mat", {"XAll": features(3, 4), "YAll": features(3, 5), "LAll": np.eye(3)})
    (folder / "clip").mkdir()
    for side in ("img", "text"):
        np.save(folder / f"clip/{side}_emb_0.npy", features(3, 6))
    return {
        "csv": ["--from", folder / "my pictüres"],
        "coco": ["--from", folder / "captions.json", "--pictures", folder / "my pictüres"],
        "img2dataset": ["--from", folder / "00000.tar"],
        "mat": ["--from", folder / "FLICKR 25K.mat"],
        "embeddings": ["--from", folder / "clip"],
    }


def _sample(number: int) -> dict[str, bytes]:
    return {"jpg": picture(number), "txt": b"a caption"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_a_source_that_the_jobs_can_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "öut put"
    arguments = write_sources(tmp_path / "in")[name]
    code, line = run(capsys, name, *arguments, "--to", target, "--rows-per-file", 2, "--split", "train")
    assert (code, line["status"]) == (0, "done")
    assert line["counts"]["rows_written"] == 3
    units = list_source(target)
    assert [unit.path for unit in units] == ["part-000000.parquet", "part-000001.parquet"]
    columns = resolve_columns(pq.read_schema(target / units[0].path), Columns(), where=name)
    assert columns.image is not None and columns.text is not None and columns.split == "split"
    assert json.loads((target / "_import.json").read_text())["state"] == "done"


def test_rejects_are_counted_in_the_result_and_listed_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_sources(tmp_path / "in")["csv"]
    _, line = run(capsys, "csv", *arguments, "--to", tmp_path / "out")
    assert line["rejects"] == {"missing picture": 1}
    assert line["counts"]["rows_read"] == 4
    (listed,) = Path(line["outputs"]["rejects"]).read_text().splitlines()
    assert json.loads(listed)["key"] == "gone.jpg"


def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_sources(tmp_path / "in")["csv"]
    code, line = run(capsys, "csv", *arguments, "--to", tmp_path / "out", "--dry-run")
    assert (code, line["counts"]) == (0, {"rows_read": 4, "rows_rejected": 1})
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_a_finished_import_is_replaced_only_when_asked_and_then_wholly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["mat", *write_sources(tmp_path / "in")["mat"], "--to", tmp_path / "out"]
    run(capsys, *arguments, "--rows-per-file", 1)
    code, line = run(capsys, *arguments)
    assert code == 2
    assert "holds a finished import; give another --to, or --replace" in line["error"]
    assert run(capsys, *arguments, "--replace")[0] == 0
    assert [file.name for file in (tmp_path / "out").glob("*.parquet")] == ["part-000000.parquet"]


def test_an_import_that_was_cut_short_is_done_again_without_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["mat", *write_sources(tmp_path / "in")["mat"], "--to", tmp_path / "out"]
    run(capsys, *arguments, "--rows-per-file", 1)
    (tmp_path / "out/_import.json").write_text('{"state": "started"}')
    assert run(capsys, *arguments)[1]["counts"]["rows_written"] == 3
    assert len(list_source(tmp_path / "out")) == 1


def test_parquet_of_another_origin_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    pq.write_table(pa.table({"key": ["precious"]}), tmp_path / "out/part-000000.parquet")
    arguments = write_sources(tmp_path / "in")["mat"]
    code, line = run(capsys, "mat", *arguments, "--to", tmp_path / "out", "--replace")
    assert code == 2
    assert "holds Parquet files of another origin" in line["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv", "--from", "nowhere", "--to", "o"], "nowhere: no such file or folder"),
        (["csv", "--from", "."], "data.path is not set"),
        (["mat", "--from", ".", "--to", "o"], "no .mat file"),
        (["img2dataset", "--from", ".", "--to", "o"], "no .tar and no .parquet file"),
        (["coco", "--from", ".", "--to", "o"], "--from must be the captions JSON"),
        (["embeddings", "--from", "x.bin", "--to", "o"], "--from must be a folder, got the file x.bin"),
        (["mat", "--from", "x.bin", "--to", "o", "--labels", "l"], "format mat has no use for --labels"),
        (["coco", "--from", "x.bin", "--to", "o", "--keep", "a"], "format coco has no use for --keep"),
        (
            ["csv", "--from", ".", "--to", "o", "--column", "a=b"],
            "one of key, image, text, labels, split, got 'a'",
        ),
        (["csv", "--from", ".", "--to", "o", "--column", "image"], "--column takes OURS=THEIRS"),
        (["csv", "--from", ".", "--to", "o", "--split", "a=b"], "--split must be NAME"),
        (["csv", "--from", ".", "--to", "o", "--rows-per-file", "0"], "must be at least 1, got 0"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").touch()
    code, line = run(capsys, *arguments)
    assert (code, line["status"]) == (2, "failed")
    assert message in line["error"]


@pytest.mark.parametrize("kind", ["csv", "img2dataset", "mat", "embeddings", "coco"])
def test_a_source_that_object_storage_does_not_have_is_a_wrong_setting_too(
    s3_server: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = run(capsys, kind, "--from", f"{s3_server}/nowhere/at.all", "--to", tmp_path / "out")
    assert (code, "nowhere/at.all: no such file or folder" in line["error"]) == (2, True)


def test_source_and_target_may_both_be_object_storage(
    s3_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path / "in")
    root = f"{s3_server}/import"
    Storage(root).upload_folder(tmp_path / "in", "in put")
    for name, source in (("csv", "my pictüres"), ("img2dataset", "00000.tar"), ("mat", "FLICKR 25K.mat")):
        code, line = run(capsys, name, "--from", f"{root}/in put/{source}", "--to", f"{root}/{name}")
        assert code == 0, line.get("error")
        assert line["counts"]["rows_written"] == 3
        assert [unit.path for unit in list_source(f"{root}/{name}")] == ["part-000000.parquet"]
