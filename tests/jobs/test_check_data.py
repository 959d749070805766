"""check_data as a user runs it: what it finds, when it says trouble, what it leaves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import save_pretrained
from jobs.cli import main
from tests.corpus.importers.sources import features, picture
from tests.encoding.sources import tiny_method

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave what they write in a folder of the test."""
    monkeypatch.setenv("HASHFLEET_RUN__DIR", str(tmp_path / "runs"))


def check(
    capsys: pytest.CaptureFixture[str], *arguments: object, **settings: object
) -> tuple[int, dict[str, Any]]:
    """Run the job; return its exit code and result line."""
    capsys.readouterr()
    sets = [
        word for name, value in settings.items() for word in ("--set", f"{name.replace('__', '.')}={value}")
    ]
    code = main(["check_data", *map(str, arguments), *sets])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def rows(count: int = 40) -> list[dict[str, Any]]:
    def split(n: int) -> str:
        return "query" if n % 5 == 0 else "train"

    return [
        {"key": f"k{n}", "image": picture(n), "text": f"caption {n}", "labels": [n % 3], "split": split(n)}
        for n in range(count)
    ]


def write(folder: Path, content: list[dict[str, Any]], name: str = "a.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content), folder / name)
    return folder


def test_a_sound_source_is_done_with_figures_and_a_sheet(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = check(capsys, data__path=scenes)
    assert (code, line["status"], line["trouble"]) == (0, "done", [])
    counts = line["counts"]
    assert (counts["files"], counts["rows"], counts["row_groups"], counts["keys_read"]) == (3, 96, 3, 96)
    assert counts["rows_decoded_image"] == counts["rows_decoded_text"] == 96
    assert line["columns"] == {n: n for n in ("key", "image", "text", "labels", "split")}
    assert line["metrics"]["bytes_per_row"] > 0
    for side in ("image", "text"):
        assert line["metrics"][f"{side}_hours"] == pytest.approx(
            line["metrics"][f"{side}_core_hours"] / 2, abs=1e-6
        )
        assert f"{side}_forward_rows_per_second" not in line["metrics"]
    page = Path(line["outputs"]["sheet"]).read_text()
    assert page.count("<figure") == 96
    assert page.count("data:image/jpeg") == 96


def test_with_a_model_the_network_is_measured_and_decides_the_size(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(tiny_method(), tmp_path / "model", card={})
    code, line = check(capsys, "--rows", 40, data__path=scenes, encode__model=tmp_path / "model")
    assert code == 0, line
    assert line["counts"]["rows_sampled"] == 40
    for side in ("image", "text"):
        assert line["metrics"][f"{side}_forward_rows_per_second"] > 0


def test_features_are_checked_like_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [
        {"id": n, "image_features": image.tolist(), "text_features": text.tolist(), "caption_text": f"<{n}>"}
        for n, (image, text) in enumerate(zip(features(30, 8), features(30, 4), strict=True))
    ]
    content[3]["image_features"][0] = float("nan")
    settings = {"data__columns__passthrough": "[caption_text]", "encode__max_reject_fraction": 0.1}
    code, line = check(capsys, data__path=write(tmp_path / "d", content), **settings)
    assert code == 0, line
    assert line["rejects"] == {"image": {"feature not finite": 1}, "text": {}}
    assert "caption_text: &lt;7&gt;" in Path(line["outputs"]["sheet"]).read_text()


def spoilt(what: str) -> list[dict[str, Any]]:
    """Return rows with one thing wrong."""
    content = rows()
    for n, row in enumerate(content):
        if what == "pictures" and n % 4 == 0:
            row["image"] = row["image"][:100]
        if what == "texts":
            row["text"] = None
        if what == "keys":
            row["key"] = f"k{n % 10}"
        if what == "split":
            row["split"] = "unknown"
        if what == "columns":
            row["photo"] = row.pop("image")
            row["title"] = row.pop("text")
    return [] if what == "rows" else content


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "pictures",
            "image: 10 of 40 sampled rows would be rejected (10 truncated image), more than encode.max",
        ),
        ("texts", "text: not one of the 40 sampled rows can be used; they are null"),
        ("keys", "30 of 40 rows have no key or one that their file has already"),
        ("split", "no train row: column 'split' holds unknown, and data.split.train asks for train"),
        (
            "columns",
            "a.parquet: no column 'image' or 'text'; found: key, labels, split, photo, title; name it",
        ),
    ],
)
def test_trouble_ends_in_code_2_with_the_reasons_and_the_figures(
    what: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = check(capsys, data__path=write(tmp_path / "d", spoilt(what)))
    assert (code, line["status"]) == (2, "failed")
    assert any(message in trouble for trouble in line["trouble"]), line["trouble"]
    assert line["counts"]["files"] == 1
    assert message.split("'")[0] in Path(line["outputs"]["sheet"]).read_text()


def test_a_source_without_rows_or_files_is_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.Table.from_pylist(rows(2)).slice(0, 0), write(tmp_path / "d", rows(2)) / "a.parquet")
    code, line = check(capsys, data__path=tmp_path / "d")
    assert (code, line["trouble"]) == (2, ["the source has no rows"])
    (tmp_path / "d/a.parquet").unlink()
    code, line = check(capsys, data__path=tmp_path / "d")
    assert code == 2
    assert "no .parquet file: an empty corpus; see data.path, or have import_data make" in line["error"]


def test_a_broken_file_among_others_and_an_unfinished_import_are_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "ein Ördner", rows())
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-30])
    (folder / "_import.json").write_text('{"state": "started"}')
    code, line = check(capsys, data__path=folder)
    assert code == 2
    broken, unfinished = line["trouble"]
    assert broken.startswith("b.parquet: ")
    assert "_import.json: the import of this data did not end; run it again" in unfinished
    assert line["counts"]["rows_decoded_image"] == 40


def test_given_a_size_the_job_runs_without_torch(scenes: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from jobs.cli import main; "
        f"sys.exit(main(['check_data', '--image-size', '32', '--set', 'data.path={scenes}']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
