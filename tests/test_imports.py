"""The import table of docs/design.md, read from the sources' own syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "cmh_models": set(),
    "pipeline.codes": set(),
    "pipeline.corpus": set(),
    "pipeline.releases": set(),
    "pipeline.learning": {"pipeline.corpus", "pipeline.releases", "cmh_models"},
    "pipeline.encoding": {"pipeline.corpus", "pipeline.releases", "cmh_models"},
    # A query is decoded, and a key becomes an id, by the code that did it for the rows.
    "pipeline.search": {
        "pipeline.releases",
        "pipeline.corpus.schema",
        "pipeline.corpus.recipe",
        "pipeline.corpus.sides",
        "cmh_models.words",
    },
    "pipeline.quality": {"pipeline.search", "pipeline.releases"},
    "cluster": set(),
}
FENCES = {  # third party -> the files and rooms that may import it
    "torch": {"cmh_models", "pipeline.learning", "pipeline.encoding"},
    "ray": {"pipeline.corpus.dataset", "jobs", "cluster"},
    "s3fs": {"pipeline.releases.storage"},
    "fsspec": {"pipeline.releases.storage"},
    "deepspeed": {"pipeline.learning.engine"},
    "torch.distributed": {"pipeline.learning.engine", "pipeline.learning.gather"},
    "faiss": {"pipeline.search"},
    "onnxruntime": {"pipeline.search"},
    "numba": {"pipeline.search", "pipeline.quality", "pipeline.corpus.resizing"},
}


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


SOURCES = sorted(
    file for folder in ("cmh_models", "pipeline", "cluster", "jobs") for file in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("file", SOURCES, ids=module_name)
def test_a_module_imports_only_what_its_room_may(file: Path) -> None:
    module = module_name(file)
    room = next((room for room in ROOMS if inside(module, room)), None)
    for name in imports(file):
        if name.split(".")[0] in ("cmh_models", "pipeline", "cluster", "jobs") and room is not None:
            allowed = ROOMS[room] | {room, "pipeline.codes"}
            assert any(inside(name, place) for place in allowed), f"{module} imports {name}"
        for package, places in FENCES.items():
            if inside(name, package):
                assert any(inside(module, place) for place in places), f"{module} imports {name}"


def test_the_packages_themselves_are_empty_but_for_the_registry() -> None:
    for file in SOURCES:
        outgrown = module_name(file).count(".") > 1  # a file that became a folder of the same name
        if file.name == "__init__.py" and module_name(file) != "cmh_models" and not outgrown:
            assert not file.read_text(encoding="utf-8").strip(), f"{file} must be empty"


def test_no_source_outgrows_the_ceiling_of_400_lines() -> None:
    for file in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, f"{file} is too long"
