"""The results page, its plot, and the README's block, rendered from the table: plain Markdown and SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.quality.protocol import CODINGS, JOINT, OWN
from pipeline.quality.published import BITS, SOURCE, WIKI_I2T, WIKI_T2I
from pipeline.quality.table import BASELINES, METHODS, Row, digits, find, notes, pair

MARKERS = ("<!-- results -->", "<!-- end of results -->")
_COLOURS = ("#1b6ca8", "#2a9d8f", "#d1495b", "#8d5a97", "#e09f3e", "#bbbbbb", "#888888", "#555555", "#222222")


def readme_block(results: Mapping[str, Any]) -> str:
    """Return the README's table: mAP@all at the main code length, both directions, means over the seeds."""
    rows, sets, bits = results["table"], _sets(results["table"]), results["bits"]
    lines = [
        MARKERS[0],
        f"| I2T / T2I, {bits} bits | " + " | ".join(sets) + " |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for method in _methods(rows):
        cells = [pair(find(rows, data, method, bits)) for data in sets]
        lines.append(f"| {METHODS.get(method, method)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        _seeds_and_spread(results),
        "",
        f"`{results['command']}`; cells made {_commits(rows)}.",
        MARKERS[1],
    ]
    return "\n".join(lines)


def results_page(results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    rows, bits = results["table"], results["bits"]
    parts = [
        "# Results",
        f"Written by `{results['command']}` at commit {results['commit']}, cells made {_commits(rows)}; "
        "ties, seeds, commits, digests and protocol of each number are in [results.json](results.json). "
        "Do not edit.",
        "## Protocol",
        _protocol(rows),
        f"## {bits} bits, every set",
        "mAP@all, I2T / T2I, each side by its own tower, mean over the seeds:",
        "\n".join(readme_block(results).splitlines()[1:-4]),
        _seeds_and_spread(results),
        f"![mAP@all at {bits} bits](results.svg)",
        *[part for data in _sets(rows) for part in _one_set(results, data)],
        "## Wiki at 16, 32, 64 and 128 bits, beside published rows",
        *_wiki(rows),
        "## Where a method loses",
        _listed(notes(rows, bits)) or "No method is below a baseline or its bar.",
    ]
    return "\n\n".join(parts) + "\n"


def results_plot(results: Mapping[str, Any]) -> str:
    """Return an SVG: a line per set and direction, a dot per method."""
    rows, bits = results["table"], results["bits"]
    lines = [(data, way) for data in _sets(rows) for way in ("i2t", "t2i")]
    methods, left, width = _methods(rows), 130, 560
    height = 40 + 24 * len(lines)
    body = [
        f'<line x1="{left + width * x / 10}" x2="{left + width * x / 10}" y1="16" y2="{height - 16}" '
        f'stroke="#ddd"/><text x="{left + width * x / 10}" y="{height - 2}" text-anchor="middle">.{x}</text>'
        for x in range(10)
    ]
    for number, (data, way) in enumerate(lines):
        y = 32 + 24 * number
        body.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{data} {way.upper()}</text>')
        for method, colour in zip(methods, _COLOURS, strict=False):
            row = find(rows, data, method, bits)
            if row is not None:
                value = row[OWN][f"map_{way}"]["mean"]
                body.append(
                    f'<circle cx="{left + width * value:.1f}" cy="{y}" r="5" fill="{colour}" '
                    f'fill-opacity=".85"><title>{METHODS[method]} {value:.3f}</title></circle>'
                )
    for number, (method, colour) in enumerate(zip(methods, _COLOURS, strict=False)):
        y = 32 + 20 * number
        body.append(f'<circle cx="{left + width + 24}" cy="{y}" r="5" fill="{colour}"/>')
        body.append(f'<text x="{left + width + 36}" y="{y + 4}">{METHODS[method]}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 220}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><title>mAP@all at {bits} bits, by set and direction</title>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def _protocol(rows: Sequence[Row]) -> str:
    with_protocol = [row for row in rows if "protocol" in row]
    first = max(with_protocol, key=lambda row: row["method"] not in BASELINES)["protocol"]
    told = [
        "Relevant: the two share at least one label. I2T: an image asks, texts are found; T2I the reverse.",
        "mAP@all ranks every retrieval row by Hamming distance; mAP@50 the first 50, and divides by the "
        "relevant rows among them.",
        f"Ties: {first['ties']}; tables show the expectation, mAP@50 beside papers the stable order.",
        f"Epochs: {first['epochs']}. Query rows are judged once for a recipe; nothing is chosen by them.",
        *[f"{name.capitalize()}: {meaning}." for name, meaning in CODINGS.items()],
        "Baselines work on the very features that the networks start from (for pictures the descriptor, for "
        "texts the bag of words), ridge on those of DSCMH's recipe, the others on those of JDSH's; "
        "regularisers, whether rows are brought to unit length first, and the best length of CCA, are chosen "
        "on validation rows.",
        "Pictures are described once where a recipe's tower is the fixed descriptor; others see pixels.",
        "Where all retrieval pairs were trained on, as the published split of Wiki has it, a network that "
        "learns their labels by heart gains by it, most of all in T2I.",
        "Spread: largest less smallest over the seeds of weights, order and draws; the split is fixed.",
    ]
    return _listed(told)


def _one_set(results: Mapping[str, Any], data: str) -> list[str]:
    """Return a set's table: both cut-offs with spreads, and the joint code."""
    rows, bits = results["table"], results["bits"]
    shown = [row for method in _methods(rows) if (row := find(rows, data, method, bits)) is not None]
    if not shown:
        return []
    about = shown[0]["protocol"]
    lines = [
        "| method | bits | mAP@all | spread | mAP@50 | spread | joint code, mAP@all | s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in shown:
        length = "/".join(map(str, row.get("code_length", [bits])))
        lines.append(
            f"| {METHODS[row['method']]} | {length} | {pair(row)} | {pair(row, of='spread')} | "
            f"{pair(row, metric='map50')} | {pair(row, metric='map50', of='spread')} | "
            f"{pair(row, JOINT)} | {row['seconds']:.0f} |"
        )
    trained = max((row["rows"][-1] for row in shown if "rows" in row), default=0)
    head = (
        f"{about['queries']:,} queries against {about['retrieval_rows']:,} pairs, of which {trained:,} were "
        f"trained on; data digest `{about['data_digest'][:12]}`."
    )
    return [f"### {data}", head, "\n".join(lines)]


def _wiki(rows: Sequence[Row]) -> list[str]:
    parts = []
    for way, published in (("i2t", WIKI_I2T), ("t2i", WIKI_T2I)):
        lines = ["| " + way.upper() + " | " + " | ".join(map(str, BITS)) + " |", "|---" * 5 + "|"]
        for coding in (OWN, JOINT):
            for metric, of in (("map50", "stable"), ("map", "mean")):
                for method in _methods(rows):
                    found = [find(rows, "wiki", method, bits) for bits in BITS]
                    if any(found):
                        title = "mAP@50" if metric == "map50" else "mAP@all"
                        values = [
                            "–" if row is None else digits(row[coding][f"{metric}_{way}"][of])
                            for row in found
                        ]
                        lines.append(f"| {METHODS[method]}, {coding}, {title} | " + " | ".join(values) + " |")
        lines += [
            f"| *{name}, published, mAP@50* | " + " | ".join(map(digits, values)) + " |"
            for name, values in published.items()
        ]
        parts.append("\n".join(lines))
    return [f"Published rows: {SOURCE}", *parts]


def _seeds_and_spread(results: Mapping[str, Any]) -> str:
    """Say how many seeds each set has, and how far they are apart at most."""
    seeds, spreads = [], []
    for data in _sets(results["table"]):
        shown = [row for row in results["table"] if (row["data"], row["bits"]) == (data, results["bits"])]
        shown = [row for row in shown if "absent" not in row]
        if shown:
            counts = sorted({len(row["seeds"]) for row in shown})
            widest = max(row[OWN][f"map_{way}"]["spread"] for row in shown for way in ("i2t", "t2i"))
            seeds.append(f"{data} {'/'.join(map(str, counts))}")
            spreads.append(f"{data} {digits(widest)}")
    return f"Seeds: {', '.join(seeds)}. Largest spread of a cell: {', '.join(spreads)}."


def _commits(rows: Sequence[Row]) -> str:
    """Say at which commits the cells were made, each by its own code."""
    commits = sorted({commit for row in rows for commit in row.get("commits", ())})
    return f"at commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"


def _sets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["data"] for row in rows))


def _methods(rows: Sequence[Row]) -> list[str]:
    present = {row["method"] for row in rows}
    return [method for method in METHODS if method in present]


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
