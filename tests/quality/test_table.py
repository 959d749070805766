"""The table from its cells, and what it must say about them."""

from typing import Any

import pytest

from pipeline.quality.protocol import JOINT, OWN
from pipeline.quality.results import MARKERS, readme_block, results_page, results_plot
from pipeline.quality.table import METRICS, digits, find, notes, pair, summarise


def cell(method: str, value: float, *, data: str = "wiki", bits: int = 32, seed: int = 1) -> dict[str, Any]:
    """Return a cell whose numbers are all one value; ties could move it by .1 and are stable .05 above."""
    judged = {
        "metrics": dict.fromkeys(METRICS, value),
        "ties": {
            name: {"lowest": value - 0.1, "stable": value + 0.05, "highest": value + 0.1} for name in METRICS
        },
        "protocol": {
            "queries": 4,
            "retrieval_rows": 1000,
            "data_digest": "ab" * 16,
            "ties": "expectation",
            "epochs": "the last",
            "seed": seed,
            "coding": OWN,
        },
    }
    facts = {"recipe": "r", "commit": "c", "seconds": 2.0}
    return {"data": data, "method": method, "bits": bits, "seed": seed, OWN: judged, JOINT: judged} | facts


def results(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"command": "run this", "commit": "abc", "bits": 32, "table": summarise(cells)}


def test_a_row_is_the_mean_and_the_spread_over_its_seeds() -> None:
    rows = summarise([cell("jdsh", 0.3, seed=1), cell("jdsh", 0.5, seed=2), cell("dbrc", 0.2)])
    row = find(rows, "wiki", "jdsh", 32)
    assert row is not None and row["seeds"] == [1, 2]
    expected = {"mean": 0.4, "spread": 0.2, "lowest": 0.3, "stable": 0.45, "highest": 0.5}
    assert row[OWN]["map_i2t"] == pytest.approx(expected)
    assert (pair(row), pair(row, of="spread"), pair(None)) == (".400 / .400", ".200 / .200", "–")
    assert "seed" not in row["protocol"]


def test_digits_have_no_leading_zero_and_keep_a_one() -> None:
    assert [digits(value) for value in (0.0, 0.1234, 0.9996, 1.0)] == [".000", ".123", "1.000", "1.000"]


def test_a_method_below_a_baseline_its_bar_or_a_published_row_is_named() -> None:
    told = notes(
        summarise(
            [
                cell("jdsh", 0.3, data="cub600"),
                cell("cca", 0.4, data="cub600"),
                cell("ridge", 0.9, data="cub600"),
                cell("dscmh", 0.85, data="cub600"),
                cell("jdsh", 0.5),
            ]
        )
    )
    assert "JDSH on cub600, I2T: .300, below CCA (.400)" in told
    assert "JDSH on cub600, T2I: .300, below the bar of .640 set before measuring" in told
    assert "DSCMH (reconstruction) on cub600, I2T: .850, below ridge on label codes (.900)" in told
    assert not any("JDSH on cub600" in note and "ridge" in note for note in told)  # JDSH sees no labels
    assert "JDSH on wiki at 32 bits, joint code, T2I mAP@50: .550; below the .635 published for DJSRH" in told
    assert not any("I2T mAP@50" in note for note in told)


def test_a_cell_that_is_absent_leaves_a_dash() -> None:
    absent = {"data": "wiki", "method": "cca", "bits": 32, "seed": 1, "absent": "no such length"}
    block = readme_block(results(cell("jdsh", 0.5), absent))
    assert "| CCA | – |" in block and "| JDSH | .500 / .500 |" in block
    assert block.splitlines()[0] == MARKERS[0] and block.splitlines()[-1] == MARKERS[1]


def test_the_page_and_its_plot_show_every_method_of_the_table() -> None:
    table = results(cell("jdsh", 0.5), cell("ridge", 0.25), cell("jdsh", 0.6, bits=64))
    page, plot = results_page(table), results_plot(table)
    assert "| JDSH, own towers, mAP@all | – | .500 | .600 | – |" in page
    assert "| *DJSRH, published, mAP@50* | .611 | .635 | .646 | .658 |" in page
    assert "(reconstruction)" not in page
    assert plot.count("<circle") == 2 * (2 + 1) and "ridge on label codes 0.250" in plot
