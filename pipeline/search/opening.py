"""Open the files of a release that are searched: the parts of its sides and their quantisers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.releases.addresses import release_path
from pipeline.releases.manifest import ManifestError, ReleaseManifest, read_table
from pipeline.releases.storage import Storage
from pipeline.search.parts import Part, PartsOpening, open_part
from pipeline.search.quantisers import Quantiser, open_quantiser


@dataclass(frozen=True)
class Opened:
    """The files of a release, open."""

    parts: Mapping[str, Sequence[Part]]  # by side, none of them empty
    quantisers: Mapping[str, Quantiser]
    cache: Path  # folder for the files of a remote store


def open_files(
    storage: Storage, manifest: ReleaseManifest, *, sides: Sequence[str], cache: Path, check: bool
) -> Opened:
    """Open the parts and quantisers of some sides.

    Raises:
        ManifestError: a file is missing, damaged or not what the release says; or the release was collected
            meanwhile.
    """
    try:
        return _open(storage, manifest, sides=sides, cache=cache, check=check)
    except ManifestError as error:
        if storage.exists(release_path(manifest.digest())):
            raise
        raise ManifestError(
            f"release {manifest.digest()} of {storage.where()} was collected while it was opened; open the "
            "newest of its channel"
        ) from error


def _open(
    storage: Storage, manifest: ReleaseManifest, *, sides: Sequence[str], cache: Path, check: bool
) -> Opened:
    opening = PartsOpening(
        code_length=manifest.recipe.code_length,
        cache=cache,
        recipe=manifest.recipe.index.get("recipe", "BFlat"),
        check=check,
    )
    parts: dict[str, list[Part]] = {side: [] for side in sides}
    for row in read_table(storage, manifest, "parts").to_pylist():
        if row["side"] in parts:
            parts[row["side"]].append(open_part(storage, row, opening))
    quantisers = {
        side: open_quantiser(name, storage)
        for side, name in manifest.recipe.quantisers.items()
        if parts.get(side)
    }
    filled = {side: [part for part in opened if part.rows] for side, opened in parts.items()}
    return Opened(filled, quantisers, cache)
