"""Every block of README and docs that is marked `<!-- runs -->` is executed, file by file, in order.

A page's blocks share one folder, a copy of nothing but links to the sources. The environment makes the
corpora small and training short; the lines themselves are run as they stand.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"<!-- runs -->\n+```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SMALL = {
    "HASHFLEET_DATA__SCENES__ROWS": "400",
    "HASHFLEET_DATA__SCENES__ROWS_PER_FILE": "100",
    "HASHFLEET_DATA__SCENES__QUERIES": "80",
    "HASHFLEET_TRAIN__EPOCHS": "1",
    "HASHFLEET_TRAIN__GLOBAL_BATCH_SIZE": "64",
    "HASHFLEET_RESOURCES__WORKERS": "0",  # the same loop without Ray; Ray has tests of its own
    "OMP_NUM_THREADS": "1",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return MARKED.findall(page.read_text(encoding="utf-8"))


def commands(language: str, text: str) -> list[str]:
    if language == "python":
        return [sys.executable, "-c", text]
    assert language == "sh", f"a runnable block is sh or python, not {language}"
    return ["bash", "-euo", "pipefail", "-c", text]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    for name in ("jobs", "pipeline", "cmh_models", "cluster", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, **SMALL, "PATH": path, "PYTHONPATH": str(ROOT)}
    for language, text in blocks(page):
        ran = subprocess.run(
            commands(language, text), cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{page.name}:\n{text}\n{ran.stderr[-3000:]}"


def test_the_pages_link_only_to_files_that_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
