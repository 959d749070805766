"""How far a night has come, from units whose files are written: what stands is counted after a restart too.

It is told in three places: a log line now and then, `run.json` beside the run's outputs while the run goes on
(status "running"; the result replaces it), and whatever `also` is told, such as Ray's metrics.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping

from pipeline.encoding.units import UnitReport
from pipeline.releases.owners import process_name
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 10.0
SECONDS_PER_FILE = 3.0


class Progress:
    """Counts units and rows of one run.

    Args:
        units: how many the plan wants.
        folder: where `path`, the run.json, is written; None writes none.
    """

    def __init__(
        self, units: int, folder: Storage | None = None, path: str = "run.json", job: str = ""
    ) -> None:
        self.units, self.standing, self.made, self.rows = units, 0, 0, 0
        self.also: Callable[[Mapping[str, float]], None] | None = None
        self._folder, self._path, self._job = folder, path, job
        self._started = self._spoken = time.monotonic()
        self._written = -float("inf")

    def stands(self, units: int) -> None:
        """Count units that take no encoding: their code files stand already, or they are refused."""
        self.standing += units

    def saw(self, report: UnitReport) -> UnitReport:
        """Count a unit and hand its report on."""
        self.made += 1
        self.rows += max((codes.ledger.read for codes in report.files.values()), default=0)
        self.tell()
        return report

    def figures(self) -> dict[str, float]:
        """Return units and rows, rows per second of this run, and the seconds that the rest may take."""
        done, passed = self.standing + self.made, max(time.monotonic() - self._started, 1e-9)
        left = (self.units - done) * passed / self.made if self.made else 0.0
        return {
            "units_total": self.units,
            "units_done": done,
            "rows_done": self.rows,
            "rows_per_second": self.rows / passed,
            "seconds_left": left,
        }

    def tell(self) -> None:
        """Tell how far it is, unless that was told a moment ago."""
        now, figures = time.monotonic(), self.figures()
        last = figures["units_done"] >= self.units
        if now - self._spoken >= SECONDS_PER_LINE or last:
            self._spoken = now
            log.info(
                "encoded %d of %d units, %.0f rows/s, about %s left",
                figures["units_done"],
                self.units,
                figures["rows_per_second"],
                duration(figures["seconds_left"]),
            )
        if now - self._written >= SECONDS_PER_FILE:
            self._written = now
            self._write(figures)
            if self.also is not None:
                self.also(figures)

    def _write(self, figures: Mapping[str, float]) -> None:
        if self._folder is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        counts = {name: round(value, 3) for name, value in figures.items()}
        line = {"job": self._job, "status": "running", "seconds": seconds, "counts": counts}
        line |= {"updated": round(time.time(), 3), "process": process_name()}
        try:
            self._folder.write(self._path, json.dumps(line, indent=1).encode())
        except OSError as error:
            log.warning("run.json is not kept: %s; see run.dir", error)
            self._folder = None


def duration(seconds: float) -> str:
    """Return a time span for people: '40 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
