"""What a report says, section by section: plain values, gathered by whoever ran the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.quality.profiles import Curves


@dataclass(frozen=True)
class Stage:
    """One stage of a run; stages stand in the order in which they ran."""

    name: str
    what: str
    seconds: float
    rows: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True)
class Example:
    """A picture, its own caption, and an unrelated caption, with their codes."""

    picture: bytes
    picture_code: np.ndarray  # (L // 8,) packed
    caption: str
    caption_code: np.ndarray
    other: str
    other_code: np.ndarray


@dataclass(frozen=True)
class Hit:
    """One row found. `shared`: names of the labels that it shares with the question; none is a miss."""

    key: str
    distance: int
    shared: tuple[str, ...]
    picture: bytes | None = None
    text: str = ""


@dataclass(frozen=True)
class Question:
    """What was asked and what was found; a question with a picture finds captions, any other pictures."""

    origin: str
    labels: tuple[str, ...]
    hits: Sequence[Hit]
    chance: float  # share of all rows that are relevant to it
    text: str = ""
    picture: bytes | None = None


@dataclass(frozen=True)
class Score:
    """A line of the table of scores: mAP by metric name, and the range that ties could move it in."""

    name: str
    what: str
    bits: int
    bytes_per_item: int
    metrics: Mapping[str, float]
    ties: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kind: str = ""  # class in the page's style, shared with its curves


@dataclass(frozen=True)
class Bits:
    """The bits of one side: share of ones, correlation, and the figures of `metrics.bit_health`."""

    side: str
    ones: np.ndarray  # (L,)
    correlation: np.ndarray  # (L, L)
    health: Mapping[str, float]
    sharing: int  # rows whose code another row has too


@dataclass(frozen=True)
class Ledger:
    """What became of the rows of one side: rows = encoded + reused + rejected + absent."""

    side: str
    rows: int
    encoded: int
    reused: int
    rejected: int
    absent: int


@dataclass(frozen=True)
class FileOfNight:
    """A file of the source on one night."""

    path: str
    state: str  # why it was read, or that it was not
    rows: int
    codes: int  # of both sides
    rejected: int


@dataclass(frozen=True)
class Rejected:
    """A row that was refused, and why."""

    path: str
    row: int
    key: str
    side: str
    reason: str
    error: str


@dataclass(frozen=True)
class Night:
    """One run of the nightly job."""

    name: str
    seconds: float
    release: str
    ledgers: Sequence[Ledger]
    units_encoded: int
    units_total: int
    parts_built: int
    parts_reused: int


@dataclass(frozen=True)
class Change:
    """What was done to the source between two nights."""

    what: str
    rows: int
    how: str


@dataclass(frozen=True)
class Gone:
    """A deleted row: what the search for its own code gave before and after."""

    key: str
    picture: bytes
    text: str
    before: Sequence[Hit]
    after: Sequence[Hit]
    rows_after: int  # rows searched after; the key is at none of their ranks


@dataclass(frozen=True)
class Nights:
    """The nights, what changed after the first of them, and what that came to."""

    nights: Sequence[Night]
    changes: Sequence[Change]
    files: Sequence[FileOfNight]
    rejects: Sequence[Rejected]
    gone: Gone


@dataclass(frozen=True)
class Stored:
    """What a kind of file takes, measured on the files of a run."""

    name: str
    what: str
    bytes: int
    rows: int
    kind: str = ""

    @property
    def per_item(self) -> float:
        return self.bytes / self.rows


@dataclass(frozen=True)
class Command:
    """Something to try next."""

    title: str
    line: str
    why: str


@dataclass(frozen=True)
class Report:
    """A whole page."""

    rows: int
    queries: int
    retrieval_rows: int
    code_length: int
    seconds: float
    machine: str
    model: str
    example: Example
    questions: Sequence[Question]
    scores: Sequence[Score]
    definitions: Mapping[str, str]
    curves: Mapping[str, Mapping[str, Curves]]  # name of a score -> direction -> curves
    pair_distances: np.ndarray  # between the picture and the caption of each retrieval row
    bits: Sequence[Bits]
    stages: Sequence[Stage]
    nights: Nights
    stored: Sequence[Stored]
    commands: Sequence[Command]
