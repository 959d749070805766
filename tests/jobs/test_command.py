"""The shape of a job: exit codes, the result line, what is kept."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jobs import cli, command
from jobs.command import Result
from jobs.config import Config
from pipeline.releases.manifest import ManifestError

ROOT = Path(__file__).parents[2]


def job(outcome: Result | BaseException) -> ModuleType:
    """Return a job that ends in this way."""
    module = ModuleType("probe", "A job of the test.")

    def run(config: Config, args: argparse.Namespace) -> Result:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module.run = run  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("outcome", "code", "status"),
    [
        (Result(counts={"rows": 3}), 0, "done"),
        (Result("refused"), 3, "refused"),
        (Result("locked"), 4, "locked"),
        (ValueError("x must be even, got 3"), 2, "failed"),
        (OSError("the disk is full"), 1, "failed"),
        (ManifestError("releases/ab.json is damaged"), 1, "failed"),
        (KeyError("a fault of ours"), 1, "failed"),
        (KeyboardInterrupt(), 130, "failed"),
    ],
)
def test_the_exit_code_says_how_a_job_ended(
    outcome: Result | BaseException,
    code: int,
    status: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.run_job("probe", job(outcome), ["--set", f"run.dir={tmp_path}"]) == code
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["job"], line["status"]) == ("probe", status)
    assert {"seconds", "outputs", "metrics", "counts"} <= line.keys()


def test_the_result_and_the_settings_lie_beside_the_outputs(tmp_path: Path) -> None:
    arguments = ["--set", f"run.dir={tmp_path}", "--set", "run.name=n"]
    command.run_job("probe", job(Result(counts={"rows": 3})), arguments)
    assert json.loads((tmp_path / "n/probe/run.json").read_text())["counts"] == {"rows": 3}
    assert "name: n" in (tmp_path / "n/probe/config.yaml").read_text()


def test_an_error_of_the_user_is_one_line_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    command.run_job("probe", job(ValueError("k must be at least 1,\n got 0")), [])
    assert capsys.readouterr().err == "probe: k must be at least 1, got 0\n"


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_has_a_page_of_help_under_both_names(name: str) -> None:
    as_file = subprocess.run(
        [sys.executable, f"jobs/{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "exit codes:" in as_file.stdout
    assert "example" in as_file.stdout
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])


def test_an_unknown_job_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "known: train, encode" in capsys.readouterr().err
