"""What differs between two releases, against the obvious comparison of their rows."""

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.releases.addresses import digest_json
from pipeline.releases.differences import compare
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, ReleaseRecipe, write_release
from pipeline.releases.storage import Storage

PLACES = st.tuples(st.sampled_from("ab"), st.sampled_from([None, 0, 2]), st.sampled_from(["image", "text"]))
UNITS_OF = st.dictionaries(PLACES, st.tuples(st.integers(0, 2), st.booleans()), max_size=6)


def row(place: tuple[str, int | None, str], code: int, purged: bool) -> dict[str, Any]:
    path, first, side = place
    unit = {"path": path, "first_row_group": first, "last_row_group": first and first + 1, "side": side}
    unit |= {"size": 1, "token": "t", "unit": digest_json("u"), "stale": False}
    unit |= {"code": digest_json([path, first, side, code]), "code_sha256": "0" * 64, "code_bytes": 1}
    if purged:
        unit["purged"] = digest_json(["purged", unit["code"]])
    return unit | {"read": code, "encoded": code, "rejected": 0, "absent": 0}


def write(storage: Storage, units: dict[Any, Any], bits: int) -> str:
    tables = {
        "units": pa.Table.from_pylist([row(place, *value) for place, value in units.items()], schema=UNITS),
        "parts": PARTS.empty_table(),
        "rejects": REJECTS.empty_table(),
    }
    recipe = ReleaseRecipe(code_length=bits, model="0" * 32, fingerprints={}, input_recipe="0" * 32)
    return write_release(storage, recipe, tables=tables)


@settings(max_examples=25)
@given(UNITS_OF, UNITS_OF, st.sampled_from([8, 16]))
def test_units_are_compared_by_place_and_by_the_file_that_stands(
    tmp_path_factory: Any, first: dict[Any, Any], second: dict[Any, Any], bits: int
) -> None:
    storage = Storage(tmp_path_factory.mktemp("store"))
    found = compare(storage, write(storage, first, 8), write(storage, second, bits))
    shared = first.keys() & second.keys()
    changed = [place for place in shared if first[place] != second[place]]
    assert len(found.added) == len(second.keys() - first.keys())
    assert len(found.removed) == len(first.keys() - second.keys())
    assert sorted((path, side) for path, _, side in changed) == sorted(
        (row["path"], row["side"]) for row in found.changed.to_pylist()
    )
    assert found.same == len(shared) - len(changed)
    assert set(found.recipe) == (set() if bits == 8 else {"code_length"})
    assert found.nothing == (first == second and bits == 8)
