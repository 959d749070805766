"""A release as files: three tables named by their SHA-256, and a small manifest that names the tables.

The manifest is written last: where it stands, everything it names stands too. Nothing here publishes a
release (`heads.py`) or looks into code files and parts (`upkeep.py`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.codes import BIT_ORDER, PACKER_VERSION
from pipeline.releases.addresses import check_path, digest_json, release_path, sha256, table_path
from pipeline.releases.storage import Storage

FORMAT = 1
"""Version of the store's layout; a store of a newer one is refused, not guessed at."""

UNITS = pa.schema(
    [
        ("path", pa.string()),  # of the source file, relative to the source root
        ("first_row_group", pa.int32()),  # range of a unit that is a part of its file; null: all of it
        ("last_row_group", pa.int32()),
        ("size", pa.int64()),  # bytes of the source file
        ("token", pa.string()),  # version of the source file
        ("unit", pa.string()),  # unit token: digest of the above without the path
        ("side", pa.string()),
        ("code", pa.string()),  # address of the code file
        ("code_sha256", pa.string()),
        ("code_bytes", pa.int64()),
        ("read", pa.int64()),  # the ledger: read = encoded + rejected + absent
        ("encoded", pa.int64()),
        ("rejected", pa.int64()),
        ("absent", pa.int64()),
        ("stale", pa.bool_()),  # the unit was refused; these are its codes of an earlier night
        ("purged", pa.string()),  # address of the file that stands for `code` since keys were purged from it
    ]
)
"""One row per unit and side, sorted by path, range and side."""

PARTS = pa.schema(
    [
        ("side", pa.string()),
        ("ordinal", pa.int32()),  # position of the part among those of its side
        ("part", pa.string()),  # address
        ("units", pa.int64()),
        ("rows", pa.int64()),
        ("index_sha256", pa.string()),
        ("index_bytes", pa.int64()),
        ("keys_sha256", pa.string()),
        ("keys_bytes", pa.int64()),
    ]
)
"""One row per index part, sorted by side and ordinal."""

REJECTS = pa.schema(
    [
        ("path", pa.string()),
        ("first_row_group", pa.int32()),
        ("side", pa.string()),
        ("rejects", pa.string()),  # address: that of the code file it belongs to
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("rows", pa.int64()),
    ]
)
"""One row per rejects file; units without a reject have none. Sorted by path, range and side."""

SCHEMAS = {"units": UNITS, "parts": PARTS, "rejects": REJECTS}
_LATER = {"purged"}  # columns that releases written before they came do not have; null there
_ORDER = {
    "units": ("path", "first_row_group", "side"),
    "parts": ("side", "ordinal"),
    "rejects": ("path", "first_row_group", "side"),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROW_GROUP = 1 << 20  # rows
_LEDGER = ("read", "encoded", "rejected", "absent")


class ManifestError(ValueError):
    """A store or a release is not what it says it is: missing, damaged, or of a newer format."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReleaseRecipe(_Record):
    """What the codes and parts of a release were made with. All of it enters the release's digest."""

    code_length: int = Field(gt=0, multiple_of=8)
    bit_order: str = Field(default=BIT_ORDER, pattern=BIT_ORDER)
    packer_version: int = PACKER_VERSION
    model: str  # digest of the artefact
    fingerprints: dict[str, str]  # side -> fingerprint of its tower
    input_recipe: str  # digest
    index: dict[str, Any] = {}  # the index configuration
    quantisers: dict[str, str] = {}  # side -> digest of its coarse quantiser


class TableRef(_Record):
    """A table of a release."""

    sha256: str = Field(pattern=_SHA256.pattern)
    size: int = Field(ge=0)
    rows: int = Field(ge=0)


class ReleaseManifest(_Record):
    """The whole of `releases/<digest>.json`. `notes` holds what was measured; the digest leaves it out."""

    format: int = FORMAT
    recipe: ReleaseRecipe
    totals: dict[str, int]
    units: TableRef
    parts: TableRef
    rejects: TableRef
    notes: dict[str, Any] = {}

    def digest(self) -> str:
        """Return the release's digest: of the recipe, the totals and the tables' sha256s."""
        return digest_json(self.model_dump(mode="json", exclude={"notes"}))


def write_release(
    storage: Storage,
    recipe: ReleaseRecipe,
    *,
    tables: Mapping[str, pa.Table],
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Write the tables of a release, then its manifest, and return its digest. Writing it twice is harmless.

    Args:
        tables: `units`, `parts` and `rejects` by the schemas above, in any order of rows; every file they
            name lies in the store already.
        notes: what is worth keeping but not part of the identity, such as the verdict of the gate.
    Raises:
        ValueError: a schema differs, a path leaves the source, a row is named twice, or a ledger does not
            balance. Nothing is written then.
    """
    ordered = {name: _checked(name, tables) for name in SCHEMAS}
    _check_ledger(ordered["units"])
    files = {name: to_parquet(table) for name, table in ordered.items()}
    references = {
        name: TableRef(sha256=sha256(data), size=len(data), rows=len(ordered[name]))
        for name, data in files.items()
    }
    manifest = ReleaseManifest(
        recipe=recipe,
        totals=_totals(ordered),
        units=references["units"],
        parts=references["parts"],
        rejects=references["rejects"],
        notes=dict(notes or {}),
    )
    for name, data in files.items():
        storage.create(table_path(references[name].sha256), data)
    digest = manifest.digest()
    storage.create(release_path(digest), manifest.model_dump_json(indent=1).encode())
    return digest


def read_release(storage: Storage, digest: str) -> ReleaseManifest:
    """Read a release's manifest and check that it is the one its name says.

    Raises:
        ManifestError: it is missing, damaged or of a newer format.
    """
    path = release_path(digest)
    try:
        document = json.loads(storage.read(path))
    except FileNotFoundError as error:
        raise ManifestError(
            f"{storage.where(path)} is missing: there is no release {digest} in this store;"
            " roll back to a release that `releases list` shows"
        ) from error
    except ValueError as error:
        raise ManifestError(f"{storage.where(path)}: not JSON ({error}); restore the file") from error
    _check_format(document, storage.where(path))
    try:
        manifest = ReleaseManifest.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(step) for step in fault["loc"])
        raise ManifestError(f"{storage.where(path)}: {field}: {fault['msg']}") from error
    if manifest.digest() != digest:
        raise ManifestError(
            f"{storage.where(path)} was changed after it was written: its content has digest"
            f" {manifest.digest()}; restore the file or roll back"
        )
    return manifest


def read_table(storage: Storage, manifest: ReleaseManifest, name: str) -> pa.Table:
    """Read a table of a release: `units`, `parts` or `rejects`.

    Raises:
        ManifestError: it is missing, its bytes are not those that the manifest names, or it names a path
            outside of the source.
    """
    reference: TableRef = getattr(manifest, name)
    path = table_path(reference.sha256)
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: the {name} of a release") from error
    if sha256(data) != reference.sha256:
        raise ManifestError(
            f"{storage.where(path)} is damaged: its sha256 is {sha256(data)}; restore the file or roll back"
        )
    try:
        return _checked(name, {name: pq.read_table(pa.BufferReader(data))})
    except (pa.ArrowException, ValueError) as error:
        raise ManifestError(f"{storage.where(path)}: {error}") from error


def code_file(unit: Mapping[str, Any]) -> str:
    """Return the address at which the code file of a row of `units` stands, and its rejects with it.

    `code` is the address that a plan wants; once forgotten keys are purged from the file, what is left of it
    stands at another one.
    """
    address: str = unit["purged"] or unit["code"]
    return address


def code_files(units: pa.Table) -> pa.ChunkedArray:
    """Return `code_file` of every row of a table `units`."""
    return pc.coalesce(units["purged"], units["code"])


def joined(rows: pa.Table, *names: str) -> pa.ChunkedArray:
    """Return some columns of every row as one text, to compare rows by; a null is an empty text."""
    texts = [pc.fill_null(pc.cast(rows[name], pa.string()), "") for name in names]
    return pc.binary_join_element_wise(*texts, "\0")  # NUL is in no path


def create_store(storage: Storage) -> None:
    """Make the root a store if it is none yet; check it if it is one.

    Raises:
        ManifestError: it is a store of a newer format, or its store.json is damaged.
    """
    if not storage.create("store.json", json.dumps({"format": FORMAT}).encode()):
        check_store(storage)


def check_store(storage: Storage) -> None:
    """Check that the root is a store of a format that this version reads.

    Raises:
        ManifestError: it is not.
    """
    where = storage.where("store.json")
    try:
        document = json.loads(storage.read("store.json"))
    except FileNotFoundError as error:
        raise ManifestError(
            f"{storage.where()} is no store: it has no store.json; the first nightly run makes one"
        ) from error
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON ({error}); restore the file") from error
    _check_format(document, where)


def _check_format(document: Any, where: str) -> None:
    found = document.get("format") if isinstance(document, dict) else None
    if not isinstance(found, int) or found < 1:
        raise ManifestError(f"{where}: format must be a number from 1, got {found!r}; restore the file")
    if found > FORMAT:
        raise ManifestError(
            f"{where} has format {found}, this version reads up to {FORMAT}; install a newer hashfleet"
        )


def _checked(name: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return a table in its schema's order of columns and rows, or raise ValueError."""
    schema = SCHEMAS[name]
    if name not in tables:
        raise ValueError(f"a release has tables {', '.join(SCHEMAS)}; got {', '.join(sorted(tables))}")
    found = tables[name].schema
    table = tables[name]
    for column in _LATER.intersection(schema.names).difference(found.names):
        table = table.append_column(column, pa.nulls(len(table), schema.field(column).type))
    if set(table.column_names) != set(schema.names):
        raise ValueError(
            f"table {name}: columns must be {', '.join(schema.names)}; got {', '.join(found.names)}"
        )
    table = table.select(schema.names).cast(schema)
    if "path" in schema.names:
        for path in table["path"].filter(pc.fill_null(leaves_root(table["path"]), True)).to_pylist():
            check_path(path or "")
    order = _ORDER[name]
    if not _in_order(table, order):
        table = table.sort_by([(column, "ascending") for column in order])
        if not _in_order(table, order):
            raise ValueError(f"table {name}: every row must differ in {', '.join(order)}")
    return table.replace_schema_metadata(None)


def leaves_root(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell of every path whether `check_path` refuses it: an empty step, '.', '..', or NUL."""
    return pc.match_substring_regex(paths, r"(^|/)\.{0,2}(/|$)|\x00")


def _in_order(table: pa.Table, order: Sequence[str]) -> bool:
    """Tell whether every row comes after the one before it: sorted and distinct, found without a copy."""
    before, after = table.slice(0, max(len(table) - 1, 0)), table.slice(1)
    later = None
    for column in reversed(order):
        a, b = (_nulls_last(part[column]) for part in (before, after))
        greater = pc.less(a, b)
        later = greater if later is None else pc.or_(greater, pc.and_(pc.equal(a, b), later))
    return bool(pc.all(pc.fill_null(later, False), min_count=0).as_py())


def _nulls_last(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put the largest number where a number is null, as sorting does."""
    return pc.fill_null(column, 2**31 - 1) if pa.types.is_int32(column.type) else column


def _check_ledger(units: pa.Table) -> None:
    counted = pc.add(pc.add(units["encoded"], units["rejected"]), units["absent"])
    wrong = units.filter(pc.invert(pc.fill_null(pc.equal(units["read"], counted), False)))
    if len(wrong):
        row = wrong.slice(0, 1).to_pylist()[0]
        ledger = ", ".join(f"{name} {row[name]}" for name in _LEDGER)
        raise ValueError(
            f"{row['path']}, {row['side']}: the ledger does not balance ({ledger});"
            f" read must be encoded + rejected + absent; {len(wrong)} such rows"
        )


def _totals(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    units = tables["units"]
    totals = {
        "units": pc.count_distinct(units["path"]).as_py() if len(units) else 0,
        "parts": len(tables["parts"]),
    }
    for side in sorted(pc.unique(units["side"]).to_pylist()):
        mine = units.filter(pc.equal(units["side"], side))
        totals |= {f"{name}_{side}": pc.sum(mine[name]).as_py() for name in _LEDGER}
    return totals


def to_parquet(table: pa.Table) -> bytes:
    """Return the Parquet bytes of a table; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for start in range(0, max(len(table), 1), _ROW_GROUP):  # one by one: each is copied into one piece
            writer.write_table(table.slice(start, _ROW_GROUP).combine_chunks(), row_group_size=_ROW_GROUP)
    return sink.getvalue().to_pybytes()
