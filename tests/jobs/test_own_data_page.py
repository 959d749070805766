"""docs/own_data.md: its import and check commands run as they stand, its recipes load."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from jobs.cli import main
from jobs.config import load_config
from pipeline.releases.storage import list_source
from tests.corpus.importers.sources import features, picture, write_tar

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n", "").splitlines() if line
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every source that the page reads, under the names it uses."""
    folder = tmp_path_factory.mktemp("world")
    rows = 60
    for name in ("my pictures", "val2017", "downloaded", "annotations"):
        (folder / name).mkdir()
    for n in range(rows):
        (folder / f"my pictures/{n}.jpg").write_bytes(picture(n))
        (folder / f"val2017/{n}.jpg").write_bytes(picture(n))
    lines = [f"{n}.jpg,caption {n}\n" for n in range(rows)]
    (folder / "my pictures/captions.csv").write_text("image,caption\n" + "".join(lines))
    other = "Foto,Titel,url\n" + "".join(f"{n}.jpg,grün {n},http://x\n" for n in range(rows))
    (folder / "other.csv").write_bytes(other.encode("cp1252"))
    write_tar(folder / "downloaded/0.tar", [("1.jpg", picture(1)), ("1.txt", b"one"), ("1.json", b"{}")])
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(rows)]
    captions = [{"image_id": n, "caption": f"c {n}"} for n in range(rows)]
    instances = {"categories": [{"id": 1, "name": "cat"}], "annotations": [{"image_id": 3, "category_id": 1}]}
    content = {"captions": {"images": images, "annotations": captions}, "instances": instances}
    for name, value in content.items():
        (folder / f"annotations/{name}_val2017.json").write_text(json.dumps(value))
    labels = np.eye(3)[np.arange(12_001) % 3]
    savemat(
        folder / "FLICKR-25K.mat", {"XAll": features(12_001, 2), "YAll": features(12_001, 4), "LAll": labels}
    )
    for side in ("img", "text"):
        (folder / f"clip out/{side}_emb").mkdir(parents=True)
        np.save(folder / f"clip out/{side}_emb/{side}_emb_0.npy", features(rows, 8))
    (folder / "clip out/metadata").mkdir()
    described = pa.table({"image_path": [str(n) for n in range(rows)], "caption": ["c"] * rows})
    pq.write_table(described, folder / "clip out/metadata/metadata_0.parquet")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, job, *arguments = shlex.split(command)
    assert program == "hashfleet"
    if job not in ("import_data", "check_data"):  # those have tests of their own; their recipes must load
        load_config(str(ROOT / arguments[1]), environ={}).resolved()
        return
    monkeypatch.chdir(world)
    assert main([job, *arguments]) == 0, capsys.readouterr().out
    if job == "import_data":
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert line["counts"]["rows_rejected"] == 0
        assert list_source(line["outputs"]["data"])


def test_the_code_that_writes_parquet_by_hand_writes_what_check_data_takes(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = [block for kind, block in BLOCKS if kind == "python" and "write_table" in block]
    (world / "by hand").mkdir()
    monkeypatch.chdir(world / "by hand")
    exec(compile(program, "own_data.md", "exec"), {})
    assert main(["check_data", "--set", "data.path=mine.parquet"]) == 0
