"""A digest of the code that a method's codes depend on: its syntax, without comments and docstrings."""

import ast
import subprocess
from functools import cache
from pathlib import Path

from cmh_models import METHODS
from pipeline.releases.addresses import digest_json

ROOT = Path(__file__).resolve().parents[2]
SHARED = (
    "pipeline/learning/training.py",
    "pipeline/learning/engine/config.py",
    "pipeline/learning/engine/local.py",
    "pipeline/learning/pieces.py",
    "pipeline/corpus/plan.py",
    "pipeline/codes.py",
    "pipeline/encoding/encoder.py",
)
"""What every method's codes depend on, besides its own modules."""


def code_version(method: str) -> str:
    """Return the digest of a method's modules, what they import of `cmh_models`, and the shared ones."""
    module = METHODS[method].partition(":")[0] if method in METHODS else None
    files = sorted({*(ROOT / name for name in SHARED), *(_imported(module) if module else ())})
    return digest_json([[str(file.relative_to(ROOT)), _syntax(file)] for file in files])


@cache
def code_commit() -> str:
    """Return the commit of the code, with a + where files have changed since; "unknown" outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def files_version(*names: str) -> str:
    """Return the digest of some files below the root of the code."""
    return digest_json([[name, _syntax(ROOT / name)] for name in names])


def _imported(module: str) -> set[Path]:
    """Return the files of a module of `cmh_models` and of all that it imports there, directly or not."""
    found: set[Path] = set()
    left = [module]
    while left:
        file = _file(left.pop())
        if file is None or file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmh_models"):
                left += [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
    return found


def _file(module: str) -> Path | None:
    place = ROOT / Path(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@cache
def _syntax(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, False):
            node.body = node.body[1:]
    return digest_json(ast.dump(tree))
