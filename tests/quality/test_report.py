"""The page: every section is there, what data says is escaped, misses are misses, nothing is fetched."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.codes import pack
from pipeline.quality.evaluation import DEFINITIONS
from pipeline.quality.metrics import bit_health
from pipeline.quality.profiles import measure_curves, profile_bits
from pipeline.quality.report import compare_sizes, number, place_stages, render, seconds, size
from pipeline.quality.report.charts import Axis, Series, bar_chart, bit_square, line_chart, shade_square
from pipeline.quality.report.content import (
    Bits,
    Change,
    Command,
    Example,
    FileOfNight,
    Gone,
    Hit,
    Ledger,
    Night,
    Nights,
    Question,
    Rejected,
    Report,
    Score,
    Stage,
    Stored,
)
from tests.quality.test_evaluation import draw_pairs

SECTIONS = ("codes", "found", "scores", "curves", "bits", "timeline", "nights", "storage", "next")


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def report() -> Report:
    """A page's worth of made-up values."""
    query, retrieval = draw_pairs(1, 6, prefix="q"), draw_pairs(2, 50, prefix="r")
    metrics = dict.fromkeys(("map_i2t", "map_t2i", "map50_i2t", "map50_t2i"), 0.25)
    ties = {"map_i2t": {"lowest": 0.2, "stable": 0.25, "highest": 0.3}}
    hits = [
        Hit("a-1", 3, ("red", "star"), picture(), "a red star"),
        Hit("a-2", 4, (), picture(), "a blue <b>"),
    ]
    asked = Question("a caption", ("red", "star"), hits, 0.5, text='a "red" star & more')
    looked = replace(asked, text="", picture=picture())
    codes = retrieval.codes["image"]
    profile = profile_bits(codes)
    ledgers = [Ledger("picture", 20, 5, 12, 2, 1), Ledger("caption", 20, 6, 12, 1, 1)]
    night = Night("first night", 3.5, "0123456789abcdef", ledgers, 2, 8, 2, 0)
    return Report(
        rows=20,
        queries=6,
        retrieval_rows=50,
        code_length=16,
        seconds=130,
        machine="2 cores",
        model="A method.",
        example=Example(picture(), codes[0], "own words", codes[1], "other words", codes[2]),
        questions=[asked, looked],
        scores=[
            Score("JDSH", "trained", 16, 2, metrics, ties, "model"),
            Score("random", "lot", 16, 2, metrics),
        ],
        definitions=DEFINITIONS,
        curves={name: measure_curves(query, retrieval) for name in ("JDSH", "random")},
        pair_distances=np.array([0, 3, 16]),
        bits=[Bits("picture", profile.ones, profile.correlation, bit_health(codes), profile.sharing)],
        stages=[Stage("corpus", "drawn", 2.0, 100, 0, 5_000), Stage("train", "learnt", 6.0, 1000, 5_000, 70)],
        nights=Nights(
            [night, replace(night, name="second night"), replace(night, name="third night")],
            [Change("deleted", 2, "from a file")],
            [FileOfNight("a.parquet", "new", 5, 9, 1)],
            [Rejected("a.parquet", 3, "", "picture", "missing key", "must be <something>")],
            Gone(
                "a-9",
                picture(),
                "gone text",
                [Hit("a-9", 0, (), picture())],
                [Hit("a-1", 2, (), picture())],
                19,
            ),
        ),
        stored=[Stored("floats", "as floats", 640, 10), Stored("index", "codes", 20, 10)],
        commands=[Command("Ask", "hashfleet search --text 'a & b'", "why")],
    )


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


class Elements(HTMLParser):
    """Collects start tags, and refuses tags that are closed in the wrong order."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"


def test_every_section_is_there_and_is_reached_from_the_top(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert [attrs["id"] for tag, attrs in elements.seen if tag == "section"] == list(SECTIONS)
    assert [attrs["href"] for tag, attrs in elements.seen if tag == "a"] == [f"#{name}" for name in SECTIONS]


def test_the_page_fetches_nothing(page: str) -> None:
    for _, attrs in Elements(page).seen:
        for name in ("src", "href", "srcset", "poster", "data"):
            assert str(attrs.get(name) or "#").startswith(("#", "data:image/jpeg;base64,")), attrs
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe", page)


def test_misses_are_marked_as_misses_and_hits_by_what_they_share(page: str) -> None:
    found = page[page.index('id="found"') : page.index('id="scores"')]
    assert found.count('<span class="verdict">miss</span>') == 2
    assert found.count('<span class="verdict">red, star</span>') == 2
    assert found.count('class="hit miss"') == found.count('<li class="miss"') == 1
    assert found.count("1 of 2 relevant; a random draw would give 1.0") == 2


def test_what_comes_from_the_data_is_escaped(page: str) -> None:
    assert "a &#34;red&#34; star &amp; more" in page
    assert "must be &lt;something&gt;" in page
    assert "a blue &lt;b&gt;" in page
    assert "hashfleet search --text &#39;a &amp; b&#39;" in page


def test_the_books_of_the_night_and_the_deleted_row_are_told(page: str) -> None:
    words = re.sub(r"<[^>]+>", "", page)
    assert "picture side, 20 rows = 5 encoded + 12 reused + 2 rejected + 1 absent" in words
    assert "distance 0, a-9: the row itself" in words
    assert "a-9 is at none of all 19 ranks" in words
    assert "missing key" in words


def test_a_page_without_absent_rows_or_hits_still_renders(report: Report) -> None:
    ledgers = [replace(ledger, absent=0, rejected=0) for ledger in report.nights.nights[1].ledgers]
    nights = [replace(night, ledgers=ledgers) for night in report.nights.nights]
    bare = replace(report, nights=replace(report.nights, nights=nights, rejects=[]), questions=[])
    assert 'class="absent" style' not in render(bare)


def test_stages_stand_one_after_another_on_one_scale(report: Report) -> None:
    first, second = place_stages(report.stages)
    assert (first["left"], first["width"], first["rate"]) == (0, 25, "50")
    assert (second["left"], second["width"], second["rate"]) == (25, 75, "167")
    assert place_stages([Stage("idle", "nothing", 0.0)])[0]["rate"] == "–"


def test_sizes_are_per_million_items_and_drawn_against_the_largest(report: Report) -> None:
    floats, index = compare_sizes(report.stored)
    assert (floats["million"], floats["width"]) == (64e6, 100)
    assert (index["million"], index["width"]) == (2e6, 3.125)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (99_400, "99.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (256e6, "256 MB"),
        (4.2e15, "4200 TB"),
    ],
)
def test_sizes_are_written_with_three_digits(count: float, words: str) -> None:
    assert size(count) == words


def test_numbers_and_times_are_written_for_people() -> None:
    assert (number(8070), number(12.0)) == ("8,070", "12")
    assert (seconds(9.6), seconds(119.4), seconds(120), seconds(185)) == (
        "10 s",
        "119 s",
        "2 min 0 s",
        "3 min 5 s",
    )


def test_lines_lie_where_their_axes_say() -> None:
    chart = line_chart(
        [Series("a", "model", [1, 10, 100], [0, 0.5, 1], marks=((1, "half < one"),))],
        Axis("N", (1, 10, 100), log=True),
        Axis("precision", (0, 1)),
        title="A chart",
    )
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2))
    assert x2 > x1
    assert y2 < y1
    assert "half &lt; one" in chart
    assert 'aria-label="A chart"' in chart


def test_bars_and_squares_have_one_mark_per_value() -> None:
    chart = bar_chart(np.array([0.5, 1.0, 0.0]), Axis("bit", (0, 3)), Axis("", (0, 1)), middle=0.5, title="t")
    assert chart.count('class="bar"') == 3
    square = shade_square(np.array([[1.0, -0.5], [0.0, 1.0]]), title="t")
    assert square.count("h1v1h-1z") == 3
    code = pack(np.array([[1, -1] * 4]))
    bits = np.unpackbits(code[0]) * 2.0 - 1
    drawn = bit_square(bits, differs=np.arange(8) < 3, title="t")
    assert (drawn.count('class="one"'), drawn.count('class="zero"'), drawn.count('class="differs"')) == (
        4,
        4,
        3,
    )
