"""Webdataset tars."""

import json
from pathlib import Path

import pytest

from pipeline.corpus.importers.tars import PictureTars
from tests.corpus.importers.sources import MAX_BYTES, folder_of, import_into, picture, write_tar


def tars(folder: Path, *names: str, **options: object) -> PictureTars:
    return PictureTars(folder_of(folder), names, max_bytes=MAX_BYTES, **options)  # type: ignore[arg-type]


def sample(number: int, caption: bytes = b"a caption", **fields: object) -> list[tuple[str, bytes]]:
    key = f"{number:09d}"
    meta = json.dumps({"key": key, "url": f"http://x/{number}"} | fields).encode()
    return [(f"{key}.jpg", picture(number)), (f"{key}.txt", caption), (f"{key}.json", meta)]


def test_samples_of_all_tars_come_in_order_with_their_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", sample(0, 'a "b",\nc é'.encode()) + sample(1))
    write_tar(tmp_path / "00001.tar", sample(10))
    out = import_into(tmp_path / "out", tars(tmp_path, "00000.tar", "00001.tar", keep=["url", "none"]))
    assert [row["key"] for row in out.rows] == ["000000000", "000000001", "000000010"]
    assert [row["image"] for row in out.rows] == [picture(0), picture(1), picture(10)]
    assert out.rows[0]["text"] == 'a "b",\nc é'
    assert (out.rows[2]["url"], out.rows[2]["none"]) == ("http://x/10", None)


def test_a_caption_comes_from_the_json_where_there_is_no_txt(tmp_path: Path) -> None:
    members = [("ä/b c.png", picture()), ("ä/b c.json", b'{"caption": "from json", "tags": [3, 1]}')]
    write_tar(tmp_path / "a.tar", members)
    out = import_into(tmp_path / "out", tars(tmp_path, "a.tar", columns={"labels": "tags"}))
    assert [(row["key"], row["text"], row["labels"]) for row in out.rows] == [("ä/b c", "from json", [1, 3])]


def test_what_is_wrong_with_one_sample_costs_that_sample_only(tmp_path: Path) -> None:
    members = [
        *sample(0),
        ("1.txt", b"no picture"),
        *sample(2, b"caf\xe9"),
        ("3.jpg", b""),
        ("4.jpg", bytes(MAX_BYTES + 1)),
        ("5.jpg", picture()),
        ("5.json", b"{broken"),
        *sample(0),
        *sample(6, tags="cat"),
    ]
    write_tar(tmp_path / "a.tar", members)
    out = import_into(tmp_path / "out", tars(tmp_path, "a.tar", columns={"labels": "tags"}))
    assert [row["key"] for row in out.rows] == ["000000000", "5"]
    assert out.reasons() == {
        "1": "missing picture",
        "000000002": "text not UTF-8",
        "3": "empty picture",
        "4": "picture too large",
        "000000000": "duplicate key",
        "000000006": "bad label",
    }


@pytest.mark.parametrize("missing", [1, 511, 512, 513, 700, 1024, 1025, 1536, 1700, 2048])
def test_a_tar_that_was_cut_anywhere_gives_whole_samples_and_one_reject(missing: int, tmp_path: Path) -> None:
    members = [member for number in range(6) for member in sample(number)]
    write_tar(tmp_path / "whole.tar", members)
    data = (tmp_path / "whole.tar").read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # of the last member; the rest is end mark and padding
    (tmp_path / "cut.tar").write_bytes(data[: end - missing])
    out = import_into(tmp_path / "out", tars(tmp_path, "cut.tar"))
    assert out.ledger.rejects == {"broken tar": 1}
    assert out.ledger.files_broken == 1
    assert 4 <= len(out.rows) <= 5
    for number, row in enumerate(out.rows):
        assert (row["image"], row["text"]) == (picture(number), "a caption")


def test_a_damaged_header_in_the_middle_does_not_pass_for_the_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [member for number in range(4) for member in sample(number)])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    at = data.index(b"000000002.txt")
    data[at : at + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(data)
    out = import_into(tmp_path / "out", tars(tmp_path, "a.tar"))
    assert [row["key"] for row in out.rows] == ["000000000", "000000001"]
    assert out.ledger.rejects == {"broken tar": 1}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_one_file_that_is_no_tar_does_not_stop_the_others(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    write_tar(tmp_path / "b.tar", sample(0))
    out = import_into(tmp_path / "out", tars(tmp_path, "a.tar", "b.tar"))
    assert len(out.rows) == 1
    assert out.ledger.rejects == {"broken tar": 1}
