"""The shape of a job: exit codes, the result line, what is kept."""

import argparse
import errno
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

import jobs
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


def test_what_a_model_of_settings_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        code_length: int = 64

    try:
        Settings.model_validate({"code_length": "many", "alhpa": 1})
    except ValidationError as error:
        assert command.run_job("probe", job(error), []) == 2
    assert capsys.readouterr().err == (
        "probe: code_length: input should be a valid integer, unable to parse string as an integer, "
        "got 'many'; unknown key 'alhpa'\n"
    )


def test_an_error_of_the_system_says_where_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    try:
        (tmp_path / "file" / "below").mkdir()
    except OSError as error:
        assert command.run_job("probe", job(error), []) == 1
    said = capsys.readouterr().err
    assert said == f"probe: {tmp_path}/file/below: Not a directory; {command.WHAT_TO_DO[errno.ENOTDIR]}\n"


def test_a_result_that_cannot_be_kept_is_still_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert command.run_job("probe", job(Result()), ["--set", f"run.dir={tmp_path}/file"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "done"
    assert err.startswith("probe: run.json is not kept: ")
    assert len(err.splitlines()) == 1


def test_a_place_for_results_that_is_no_place_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.run_job("probe", job(KeyError("it ran")), ["--set", "run.dir=ftp://x"]) == 2
    assert "got scheme 'ftp'" in capsys.readouterr().err


def test_an_interrupt_while_the_libraries_of_a_job_load_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow_to_load.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(tmp_path)])
    monkeypatch.setitem(cli.JOBS, "slow_to_load", "a job of the test")
    assert cli.main(["slow_to_load"]) == 130
    out, err = capsys.readouterr()
    assert (json.loads(out)["error"], err) == ("interrupted", "slow_to_load: interrupted\n")


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_has_a_page_of_help_under_both_names(name: str) -> None:
    as_file = subprocess.run(
        [sys.executable, f"jobs/{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "exit codes:" in as_file.stdout
    assert "example" in as_file.stdout
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])


def test_the_readme_lists_every_job() -> None:
    house = (ROOT / "README.md").read_text(encoding="utf-8").partition("\njobs/ ")[2].partition("```")[0]
    assert house.removeprefix("         what one types").split() == list(cli.JOBS)


def test_an_unknown_job_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "known: train, " in capsys.readouterr().err
