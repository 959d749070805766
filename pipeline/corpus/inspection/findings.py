"""What a look at a source comes to: trouble that should stop a run, things worth knowing, and figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpus.inspection.layout import KeyCounts, Layout
from pipeline.corpus.inspection.sample import Sample, Trial
from pipeline.corpus.schema import SIDES, Side

LARGE_GROUP = 512 << 20
COMMON_CAPTION = 0.05
_SHOWN = 10


@dataclass(frozen=True)
class Expectations:
    """What the settings ask of the source."""

    max_reject_fraction: float
    splits: Mapping[str, Sequence[str]]  # train, query and retrieval -> values of the split column
    encoders: int = 1


@dataclass
class Findings:
    """The outcome of a check."""

    trouble: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # for people
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def judge_layout(layout: Layout) -> Findings:
    """Say what the footers tell."""
    found = Findings()
    found.trouble += layout.faults[:_SHOWN]
    if len(layout.faults) > _SHOWN:
        found.trouble.append(f"and {len(layout.faults) - _SHOWN} more files like these")
    found.counts |= {"files": layout.files, "files_opened": len(layout.footers), "rows": layout.rows}
    if not layout.footers:
        return found
    if layout.rows == 0:
        found.trouble.append("the source has no rows")
        return found
    _describe_columns(layout, found)
    groups = [(rows, stored) for _, _, rows, stored in layout.groups()]
    rows_of_groups, largest = [rows for rows, _ in groups], max(stored for _, stored in groups)
    opened, about = ("", "") if layout.complete else (f"; {len(layout.footers)} opened", "about ")
    found.facts |= {
        "files": f"{layout.files}, {_size(layout.size)}{opened}",
        "rows": f"{about}{layout.rows}, {_size(layout.size / layout.rows)} a row",
        "row groups": f"{len(groups)}, of {int(np.median(rows_of_groups))} rows at the median and "
        f"{max(rows_of_groups)} at most; up to {_size(largest)}",
    }
    found.counts |= {"row_groups": len(groups), "row_group_bytes_max": largest}
    found.metrics["bytes_per_row"] = round(layout.size / layout.rows, 1)
    if largest > LARGE_GROUP:
        found.notes.append(
            f"row groups of up to {_size(largest)}: a chunk reads its group from the start; make them smaller"
        )
    return found


def judge_keys(counts: KeyCounts, found: Findings, expected: Expectations) -> None:
    """Say what the keys tell."""
    found.counts |= {"keys_read": counts.rows, "keys_missing": counts.missing}
    found.counts |= {"keys_repeated": counts.repeated_in_file + counts.repeated_across_files}
    lost = counts.missing + counts.repeated_in_file
    found.facts["keys"] = (
        f"{counts.rows} read: {counts.missing} missing, {counts.repeated_in_file} repeated in their file, "
        f"{counts.repeated_across_files} repeated in another file"
    )
    if lost:
        line = (
            f"{lost} of {counts.rows} rows have no key or one that their file has already: they are rejects"
        )
        (found.trouble if lost > expected.max_reject_fraction * counts.rows else found.notes).append(line)
    if counts.repeated_across_files:
        found.notes.append(
            f"{counts.repeated_across_files} keys stand in more than one file: searches find them twice"
        )


def judge_splits(
    counts: Mapping[str, int] | None, layout: Layout, found: Findings, expected: Expectations
) -> None:
    """Say which sets the rows make."""
    if counts is None:
        found.notes.append("no split column: every row is train, and evaluate has no query rows")
        return
    shown = ", ".join(f"{name or '(none)'} {rows}" for name, rows in counts.items())
    found.facts["split"] = f"column '{layout.columns.split}': {shown}"
    found.details["split"] = dict(counts)
    for name, values in expected.splits.items():
        if any(counts.get(value) for value in values) or not layout.complete:
            continue
        line = (
            f"no {name} row: column '{layout.columns.split}' holds {', '.join(counts)}, "
            f"and data.split.{name} asks for {', '.join(values)}"
        )
        (found.trouble if name == "train" else found.notes).append(line)


def judge_sample(
    sample: Sample, layout: Layout, forward: Mapping[Side, float], found: Findings, expected: Expectations
) -> None:
    """Say what became of the sampled rows and what all rows would cost.

    Args:
        forward: seconds a row in the network, by side; empty where no model was given.
    """
    found.trouble += sample.faults[:_SHOWN]
    for side in SIDES:
        if side in sample.trials:
            _judge_side(side, sample.trials[side], found, expected)
            _estimate(side, sample, layout, forward=forward.get(side), found=found, expected=expected)
        else:
            found.notes.append(
                f"no {side} column: encode can do the other side; train and evaluate need both"
            )
    found.details["rejects"] = {side: dict(trial.rejects) for side, trial in sample.trials.items()}
    found.counts["rows_sampled"] = max(trial.read for trial in sample.trials.values())
    _describe_labels(sample, layout, found)
    _describe_texts(sample, found)


def _describe_columns(layout: Layout, found: Findings) -> None:
    columns, names = layout.columns, {}
    for role in ("key", "image", "text", "labels", "split"):
        column = getattr(columns, role)
        if column is not None:
            names[role] = column if isinstance(column, str) else column.name
    sizes = layout.bytes_per_row()
    found.details |= {
        "columns": names,
        "bytes_per_row": {name: round(size, 1) for name, size in sizes.items()},
    }
    for role, name in names.items():
        column = columns.side(role) if role in SIDES else None
        kind = ""
        if column is not None:
            kind = f" ({column.kind}{f' of width {column.width}' if column.width else ''})"
        found.facts[role] = f"column '{name}'{kind}, {_size(sizes.get(name, 0))} a row"


def _judge_side(side: Side, trial: Trial, found: Findings, expected: Expectations) -> None:
    rejected, present = trial.rejects.total(), trial.read - trial.absent
    found.counts |= {
        f"rows_decoded_{side}": trial.decoded,
        f"rows_rejected_{side}": rejected,
        f"rows_absent_{side}": trial.absent,
    }
    if not trial.read:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in trial.rejects.most_common())
    if not trial.decoded:
        why = f"rejected: {reasons}" if present else "null"
        found.trouble.append(f"{side}: not one of the {trial.read} sampled rows can be used; they are {why}")
    elif rejected > expected.max_reject_fraction * trial.read:
        found.trouble.append(
            f"{side}: {rejected} of {trial.read} sampled rows would be rejected ({reasons}), more than "
            f"encode.max_reject_fraction = {expected.max_reject_fraction:g} allows"
        )
    elif rejected:
        found.notes.append(f"{side}: {rejected} of {trial.read} sampled rows would be rejected ({reasons})")
    if trial.absent and present:
        found.notes.append(f"{side}: {trial.absent} of {trial.read} sampled rows have none")


def _estimate(
    side: Side,
    sample: Sample,
    layout: Layout,
    *,
    forward: float | None,
    found: Findings,
    expected: Expectations,
) -> None:
    """Extrapolate one core's seconds a row to all rows and to the encoders that are set."""
    trial, column = sample.trials[side], layout.columns.side(side)
    if not trial.decoded or column is None:
        return
    sizes = layout.bytes_per_row()
    share = sizes.get(column.name, 0) / max(sum(sizes.values()), 1e-9)
    reading = share * sample.read_seconds / max(sample.rows_read, 1)
    decoding = trial.seconds / trial.read
    hours = layout.rows * (reading + decoding + (forward or 0)) / 3600
    found.metrics |= {
        f"{side}_read_rows_per_second": round(1 / max(reading, 1e-9), 1),
        f"{side}_decode_rows_per_second": round(1 / max(decoding, 1e-9), 1),
        f"{side}_core_hours": round(hours, 6),
        f"{side}_hours": round(hours / expected.encoders, 6),
    }
    network = "network not measured"
    if forward is not None:
        found.metrics[f"{side}_forward_rows_per_second"] = round(1 / max(forward, 1e-9), 1)
        network = f"network {1 / max(forward, 1e-9):.0f} rows/s"
    found.facts[f"{side} side"] = (
        f"one core: decode {1 / max(decoding, 1e-9):.0f} rows/s, {network}; all rows take {_time(hours)}, "
        f"on {expected.encoders} encoders {_time(hours / expected.encoders)}"
    )


def _describe_labels(sample: Sample, layout: Layout, found: Findings) -> None:
    if layout.columns.labels is None:
        found.notes.append("no labels: training goes without them, evaluate cannot measure mAP")
        return
    labels = [row.labels or [] for row in sample.rows]
    distinct = {label for row in labels for label in row}
    empty = sum(not row for row in labels)
    found.facts["labels"] += f"; {len(distinct)} different ones in {len(labels)} rows, {empty} rows without"
    if labels and empty == len(labels):
        found.notes.append("labels: every sampled row has an empty list; evaluate cannot measure mAP")


def _describe_texts(sample: Sample, found: Findings) -> None:
    texts = [row.text for row in sample.rows if isinstance(row.text, str)]
    if not texts:
        return
    words = np.array([len(text.split()) for text in texts])
    found.facts["captions"] = f"{int(np.median(words))} words at the median, {words.max()} at most"
    caption, count = Counter(texts).most_common(1)[0]
    if count > max(2, COMMON_CAPTION * len(texts)):
        shown = caption if len(caption) <= 40 else f"{caption[:40]}..."
        found.notes.append(f"captions: {count} of {len(texts)} sampled rows say {shown!r}")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
