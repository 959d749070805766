"""A folder of pictures with a table of captions."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.importers.table import CaptionTable, find_table
from tests.corpus.importers.sources import MAX_BYTES, Imported, folder_of, import_into, picture


def table(folder: Path, text: str | bytes, *pictures: str, **options: Any) -> CaptionTable:
    """Write a table and its pictures, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for shade, name in enumerate(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(shade))
    here = folder_of(folder)
    return CaptionTable(here, "captions.csv", pictures=here, max_bytes=MAX_BYTES, **options)


def imported(tmp_path: Path, text: str | bytes, *pictures: str, **options: Any) -> Imported:
    return import_into(tmp_path / "out", table(tmp_path / "in", text, *pictures, **options))


def test_captions_keep_their_quotes_commas_and_newlines(tmp_path: Path) -> None:
    text = 'id,image,caption\n1,a.jpg,"a ""big"" dog,\nrunning"\n2,b.jpg,\'tis plain\n'
    out = imported(tmp_path, text, "a.jpg", "b.jpg")
    assert [row["text"] for row in out.rows] == ['a "big" dog,\nrunning', "'tis plain"]
    assert [row["key"] for row in out.rows] == ["1", "2"]
    assert [row["image"] for row in out.rows] == [picture(0), picture(1)]


def test_names_with_spaces_accents_and_folders_are_found(tmp_path: Path) -> None:
    names = ["my pictures/ein Bär.jpg", "日本 語.jpg", unicodedata.normalize("NFD", "café.jpg")]
    spelled = ["my pictures\\ein Bär.jpg", "日本 語.jpg", unicodedata.normalize("NFC", "café.jpg")]
    text = "image,caption\n" + "".join(f"{name},x\n" for name in spelled)
    out = import_into(tmp_path / "öut put", table(tmp_path / "ein gäng", text, *names))
    assert [row["key"] for row in out.rows] == spelled
    assert not out.rejects


def test_what_is_wrong_with_one_line_costs_that_line_only(tmp_path: Path) -> None:
    text = (
        b"id,image,caption\n1,a.jpg,good\n2,gone.jpg,no file\n1,a.jpg,again\n,a.jpg,no id\n"
        b"5,a.jpg,caf\xe9\n6,../a.jpg,outside\n7,https://x.org/a.jpg,a url\n8,a.jpg\n9,,no name\n"
        b'10,a.jpg,"bad" quoting\n11,empty.jpg,empty\n12,a.jpg,  \n13,caf\xe9.jpg,bad name\n14,a.jpg,last\n'
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.jpg").write_bytes(b"")
    out = imported(tmp_path, text, "a.jpg")
    assert [row["key"] for row in out.rows] == ["1", "12", "14"]
    assert out.ledger.rejects == {
        "broken line": 2,
        "missing picture": 2,
        "duplicate key": 1,
        "missing key": 1,
        "text not UTF-8": 1,
        "unsafe path": 1,
        "picture is a url": 1,
        "empty picture": 1,
        "path not UTF-8": 1,
    }
    assert out.ledger.rows_without_text == 1
    missing = next(reject for reject in out.rejects if reject.get("key") == "2")
    assert missing["where"] == "captions.csv line 3"
    assert missing["error"].endswith("in/gone.jpg")


def test_a_quote_that_is_never_closed_says_which_lines_it_swallowed(tmp_path: Path) -> None:
    text = 'id,image,caption\n1,a.jpg,good\n2,a.jpg,"open\n3,a.jpg,x\n'
    out = imported(tmp_path, text, "a.jpg")
    assert [row["key"] for row in out.rows] == ["1"]
    assert out.rejects[0]["where"] == "captions.csv lines 3 to 4"


def test_lines_of_one_picture_without_ids_are_one_row_with_all_captions(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,one\na.jpg,two\na.jpg, \nb.jpg,three\na.jpg,late\n"
    out = imported(tmp_path, text, "a.jpg", "b.jpg")
    assert [(row["key"], row["text"]) for row in out.rows] == [
        ("a.jpg", ["one", "two"]),
        ("b.jpg", ["three"]),
    ]
    assert out.reasons() == {"a.jpg": "duplicate key"}


@pytest.mark.parametrize(
    ("cells", "numbers", "names"),
    [
        (["3", "1 4", '"7,2"', "[5; 6]"], [[3], [1, 4], [2, 7], [5, 6]], []),
        (
            ["cat", "dog|cat", '"living room;dog"', ""],
            [[0], [0, 1], [1, 2], []],
            ["cat", "dog", "living room"],
        ),
    ],
)
def test_labels_are_numbers_or_names_that_get_numbers(
    cells: list[str], numbers: list[list[int]], names: list[str], tmp_path: Path
) -> None:
    text = "id,image,caption,labels\n" + "".join(f"{i},a.jpg,x,{cell}\n" for i, cell in enumerate(cells))
    out = imported(tmp_path, text, "a.jpg")
    assert [row["labels"] for row in out.rows] == numbers
    assert out.ledger.labels == names


def test_a_name_among_label_numbers_is_a_reject(tmp_path: Path) -> None:
    out = imported(tmp_path, "id,image,caption,labels\n1,a.jpg,x,4\n2,a.jpg,x,cat\n", "a.jpg")
    assert out.reasons() == {"2": "bad label"}


@pytest.mark.parametrize("delimiter", ["\t", ";", "|"])
def test_the_delimiter_is_seen_in_the_first_line(delimiter: str, tmp_path: Path) -> None:
    text = "image,caption\na.jpg,x\n".replace(",", delimiter)
    assert imported(tmp_path, text, "a.jpg").rows[0]["text"] == ["x"]


def test_other_headings_encodings_and_kept_columns_can_be_named(tmp_path: Path) -> None:
    text = "Foto;Titel;url\na.jpg;Müller grüßt;http://x\n".encode("cp1252")
    columns = {"image": "Foto", "text": "Titel"}
    out = imported(tmp_path, text, "a.jpg", columns=columns, keep=["url"], encoding="cp1252")
    assert out.rows[0]["text"] == ["Müller grüßt"]
    assert out.rows[0]["url"] == "http://x"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a,b\n1,2\n",
            {},
            r"no column that holds the image; its headings are: a, b; name columns with --col",
        ),
        ("", {}, r"its headings are: none"),
        ("image,caption\n", {"columns": {"text": "title"}}, r"no column 'title'; its headings are: image"),
        ("image,caption\n", {"keep": ["url"]}, r"no column 'url'"),
        ("image,caption\n", {"keep": ["image"]}, r"--keep image: that name is one of our own columns"),
        (
            "image,caption\n",
            {"encoding": "utf-99"},
            r"--encoding must be one that Python knows, got 'utf-99'",
        ),
        ("image,caption\n".encode("utf-16"), {}, r"captions.csv is UTF-16; give --encoding utf-16"),
    ],
)
def test_a_table_that_cannot_be_read_at_all_is_one_clear_line(
    text: str | bytes, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text, **options)


def test_a_wrong_picture_folder_is_told_after_a_hundred_rows(tmp_path: Path) -> None:
    text = "image,caption\n" + "".join(f"{i}.jpg,x\n" for i in range(1000))
    with pytest.raises(
        ValueError, match=r"first 100 pictures are not there.*99.jpg; say where .* --pictures"
    ):
        imported(tmp_path, text)


def test_a_picture_beyond_the_limit_is_never_read(tmp_path: Path) -> None:
    source = table(tmp_path / "in", "image,caption\na.jpg,x\nb.jpg,y\n", "a.jpg", "b.jpg")
    (tmp_path / "in/b.jpg").write_bytes(bytes(MAX_BYTES + 1))
    assert import_into(tmp_path / "out", source).reasons() == {"b.jpg": "picture too large"}


def test_the_one_table_of_a_folder_is_found_and_two_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "notes.txt").touch()
    assert find_table(folder_of(tmp_path)) == "a.csv"
    (tmp_path / "b.tsv").touch()
    with pytest.raises(ValueError, match=r"2 tables: a.csv, b.tsv; say which by --table FILE"):
        find_table(folder_of(tmp_path))
