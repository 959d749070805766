"""A contact sheet: sampled rows as one HTML page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from pipeline.corpus.inspection.sample import SampledRow

THUMBNAIL = 128
LONGEST_TEXT = 200

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td { padding: .2rem 1rem .2rem 0; vertical-align: top; }
td:first-child { opacity: .7; white-space: nowrap; }
.bad { color: var(--bad); } li { margin: .2rem 0; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: .8rem; }
.sheet { align-items: start; }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: 6px; }
figure { overflow-wrap: anywhere; }
figure.faulty { border-color: var(--bad); }
img { width: 128px; height: 128px; display: block; }
.none { width: 128px; height: 128px; border: 1px dashed var(--line); display: grid; place-items: center;
  text-align: center; font-size: 12px; }
figcaption { margin-top: .4rem; } small { opacity: .7; display: block; }
"""


def render_sheet(
    title: str,
    rows: Sequence[SampledRow],
    *,
    facts: Mapping[str, str],
    trouble: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the page: what is wrong, what was found, and the rows as the networks would see them.

    Rows with rejects come first. Everything that comes from the data is escaped.
    """
    table = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{_list('Trouble', trouble, 'bad')}{_list('Worth knowing', notes)}"
        f"<h2>What was found</h2><table>{table}</table>"
        f'<h2>{len(rows)} rows from all over the source</h2><div class="sheet">'
        + "\n".join(_figure(row) for row in sorted(rows, key=lambda row: not row.faults))
        + "</div></body></html>\n"
    )


def _list(heading: str, items: Sequence[str], kind: str = "") -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h2 class="{kind}">{heading}</h2><ul class="{kind}">{lines}</ul>'


def _figure(row: SampledRow) -> str:
    faults = "".join(
        f'<div class="bad">{escape(side)}: {escape(fault)}</div>' for side, fault in row.faults.items()
    )
    details = [f"{name}: {_cut(value)}" for name, value in row.passthrough.items()]
    details += [row.key or "(no key)", f"{row.path} row {row.row}"]
    if row.labels is not None:
        details.insert(0, f"labels {', '.join(map(str, row.labels)) or 'none'}")
    small = "".join(f"<small>{escape(line)}</small>" for line in details)
    kind = ' class="faulty"' if row.faults else ""
    caption = f"<figcaption>{_words(row.text)}{faults}{small}</figcaption>"
    return f"<figure{kind}>{_picture(row)}{caption}</figure>"


def _picture(row: SampledRow) -> str:
    if row.image is None:
        return f'<div class="none">{"rejected" if "image" in row.faults else "no picture"}</div>'
    if row.image.ndim == 1:
        return f'<div class="none">{_numbers(row.image)}</div>'
    picture = Image.fromarray(row.image)
    if picture.width > THUMBNAIL:
        picture = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _words(text: Any) -> str:
    if text is None:
        return ""
    if isinstance(text, np.ndarray):
        return f"<div>{_numbers(text)}</div>"
    return f"<div>{escape(_cut(text))}</div>"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."


def _numbers(values: np.ndarray) -> str:
    spread = f"from {values.min():.3g} to {values.max():.3g}"
    return f"{len(values)} features {spread}, norm {np.linalg.norm(values):.3g}"
