"""Gathers what the demo's page shows: scores, curves and bits from the judgement, sizes from the files."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from jobs.demonstration.source import Folders
from jobs.judging.judgement import Judgement
from pipeline.corpus.schema import SIDES
from pipeline.quality.evaluation import CUT
from pipeline.quality.metrics import bit_health
from pipeline.quality.profiles import Curves, evaluate_relaxed, measure_curves, profile_bits
from pipeline.quality.report.content import Bits, Command, Score, Stored
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage

MODEL = "The method is JDSH. It learns from pairs alone: labels judge the result and are never trained on."
SIDE_NAMES = {"image": "picture", "text": "caption"}
NAMES = {
    "model": ("JDSH", "model", "the trained networks"),
    "cca": ("CCA", "cca", "canonical correlation analysis, the classical linear way, on the same features"),
    "cca_32": ("CCA, 32 bits", "cca32", "the same, half as long"),
    "cca_best": ("CCA, best length", "best", "the same at the length that did best on validation rows"),
    "untrained": ("untrained", "untrained", "the same networks before training"),
    "random": ("random", "random", "codes drawn by lot"),
}
"""Name in the judgement -> name on the page, its class in the page's style, and what it is."""


def score_table(judged: Judgement) -> list[Score]:
    """Return the lines of the table of scores, the model and its relaxed codes first."""
    scores = []
    for name, (shown, kind, what) in NAMES.items():
        if name in judged.evaluations:
            one = judged.evaluations[name]
            bits = one.protocol.code_length
            scores.append(Score(shown, what, bits, bits // 8, one.metrics, one.ties, kind))
    if judged.relaxed is not None:
        scores.insert(1, _relaxed(judged, scores[0].bits))
    return scores


def _relaxed(judged: Judgement, length: int) -> Score:
    assert judged.relaxed is not None
    query, retrieval = judged.relaxed
    values = evaluate_relaxed(query, retrieval, ks=(None, min(CUT, len(retrieval.keys))))
    metrics: dict[str, float] = {}
    for direction, (everything, first) in values.items():
        metrics |= {f"map_{direction}": everything, f"map{CUT}_{direction}": first}
    what = f"the same networks' {length} numbers before only their signs are kept, ranked by cosine"
    return Score("JDSH as floats", what, 0, 4 * length, metrics, kind="floats")


def curves_of(judged: Judgement) -> dict[str, dict[str, Curves]]:
    """Return the curves of every kind of code, by its name on the page."""
    return {NAMES[name][0]: measure_curves(*judged.coded[name]) for name in NAMES if name in judged.coded}


def bits_of(judged: Judgement) -> list[Bits]:
    """Return the bits of both sides of the retrieval rows."""
    described = []
    for side in SIDES:
        codes = judged.coded["model"][1].codes[side]
        profile = profile_bits(codes)
        name = SIDE_NAMES[side]
        described.append(Bits(name, profile.ones, profile.correlation, bit_health(codes), profile.sharing))
    return described


def stored_sizes(folders: Folders, release: str, judged: Judgement) -> list[Stored]:
    """Measure what a side's items take as floats, in code files and in the index."""
    store = Storage(folders.store)
    manifest = read_release(store, release)
    units, parts = (read_table(store, manifest, name) for name in ("units", "parts"))
    units = units.filter(pc.equal(units["side"], "image"))
    parts = parts.filter(pc.equal(parts["side"], "image"))
    items, rows = pc.sum(units["encoded"]).as_py(), pc.sum(parts["rows"]).as_py()
    lines = [_floats(folders.root / "floats.npy", judged)] if judged.relaxed is not None else []
    return [
        *lines,
        Stored(
            "code files",
            "Parquet: the code with its key, its id and a hash of the picture, to find out what changed",
            pc.sum(units["code_bytes"]).as_py(),
            items,
            "files",
        ),
        Stored(
            "keys of the index",
            "Arrow, mapped from disk: which row of which file a hit is",
            pc.sum(parts["keys_bytes"]).as_py(),
            rows,
            "keys",
        ),
        Stored(
            "index",
            "FAISS: the codes alone. This is what a search reads",
            pc.sum(parts["index_bytes"]).as_py(),
            rows,
            "index",
        ),
    ]


def _floats(file: Path, judged: Judgement) -> Stored:
    """Write the relaxed codes of the retrieval pictures, as a search by floats would have to keep them."""
    assert judged.relaxed is not None
    values = judged.relaxed[1].codes["image"].astype(np.float32)
    np.save(file, values)
    what = f"float32: the {values.shape[1]} numbers of the same network before their signs are taken"
    return Stored("floats", what, file.stat().st_size, len(values), "floats")


def commands(folders: Folders, model: str) -> list[Command]:
    """Return three command lines that work on what the demo has made."""
    root = _shown(folders.root)
    return [
        Command(
            "Ask a question of your own",
            f'.venv/bin/hashfleet search --set store.uri={root}/store --text "a red star at night" -k 5',
            "Prints the keys of the nearest pictures. The words that the corpus knows stand in "
            "pipeline/corpus/scenes/vocabulary.py.",
        ),
        Command(
            "Train with half the bits",
            ".venv/bin/hashfleet train --config jobs/configs/scenes_jdsh_64.yaml --set method.code_length=32 "
            f"--set run.name=jdsh_32 --set run.dir={root}/runs --set data.path={root}/corpus",
            "Every setting can be given like this; --print-config shows them all. The last line names "
            "the new model.",
        ),
        Command(
            "Look at data of your own",
            f".venv/bin/hashfleet check_data --set data.path={root}/corpus "
            f"--set encode.model={_shown(Path(model))}",
            "Put a folder of Parquet files of yours in place of the corpus: it says what would be rejected "
            "and how long the encoding would take.",
        ),
    ]


def _shown(path: Path) -> str:
    """Return a path as it can be typed from here, in quotes where the shell needs them."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def folder_size(*folders: Path) -> int:
    """Return the bytes of all files below some folders."""
    files: Sequence[Path] = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
