"""MATLAB files of the field, versions 5 and 7.3, in their known layouts."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from pipeline.corpus.importers.mat import MatFeatures
from pipeline.corpus.importers.splits import parse_split
from tests.corpus.importers.sources import features, folder_of, import_into

ROWS = 7
X = features(ROWS, 5, seed=1)
Y = (features(ROWS, 4, seed=2) > 0).astype(np.float64)
L = (features(ROWS, 3, seed=3) > 0).astype(np.float64)
LABELS = [np.flatnonzero(row).tolist() for row in L]


def write_v73(file: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as MATLAB does since version 7.3: HDF5 behind a header, with the axes reversed."""
    with h5py.File(file, "w", userblock_size=512) as out:
        for name, array in arrays.items():
            if isinstance(array, csc_matrix):
                group = out.create_group(name)
                group.attrs["MATLAB_sparse"] = np.uint64(array.shape[0])
                group["data"], group["ir"], group["jc"] = array.data, array.indices, array.indptr
            else:
                out[name] = array.T
    with file.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def imported(tmp_path: Path, *names: str, **options: Any) -> Any:
    return import_into(tmp_path / "out", MatFeatures(folder_of(tmp_path), names), **options)


@pytest.mark.parametrize("write", [write_v73, savemat])
@pytest.mark.parametrize("transposed", [False, True])
def test_features_tags_and_labels_of_one_file_are_rows(write: Any, transposed: bool, tmp_path: Path) -> None:
    arrays = {"XAll": X, "YAll": Y, "LAll": L}
    write(tmp_path / "FLICKR 25K.mat", {k: v.T if transposed else v for k, v in arrays.items()})
    out = imported(tmp_path, "FLICKR 25K.mat", split=parse_split("query=2,train=3,retrieval=rest"))
    np.testing.assert_array_equal([row["image_features"] for row in out.rows], X)
    np.testing.assert_array_equal([row["text_features"] for row in out.rows], Y)
    assert [row["labels"] for row in out.rows] == LABELS
    assert [row["split"] for row in out.rows] == ["query"] * 2 + ["train"] * 3 + ["retrieval"] * 2
    assert out.rows[3]["key"] == "000000003"


@pytest.mark.parametrize("write", [write_v73, savemat])
def test_pictures_stand_upright_whatever_the_version(write: Any, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 3, ROWS), dtype=np.uint8)  # MATLAB: H W C N
    write(tmp_path / "a.mat", {"images": pictures, "YAll": Y, "LAll": L})
    out = imported(tmp_path, "a.mat")
    for number, row in enumerate(out.rows):
        decoded = np.asarray(Image.open(io.BytesIO(row["image"])))
        np.testing.assert_array_equal(decoded, pictures[..., number])


def test_hdf5_of_another_program_is_taken_as_it_stands(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 6, 8)).astype(np.float32)
    with h5py.File(tmp_path / "a.mat", "w") as out:
        out["IAll"], out["YAll"], out["LAll"] = pictures, Y, L
    rows = imported(tmp_path, "a.mat").rows
    decoded = np.asarray(Image.open(io.BytesIO(rows[4]["image"])))
    np.testing.assert_array_equal(decoded, pictures[4].transpose(1, 2, 0))
    assert rows[4]["text_features"] == Y[4].tolist()


@pytest.mark.parametrize("write", [write_v73, savemat])
def test_sparse_tags_are_features_like_others(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.mat", {"XAll": X, "YAll": csc_matrix(Y), "LAll": L})
    rows = imported(tmp_path, "a.mat").rows
    np.testing.assert_array_equal([row["text_features"] for row in rows], Y)


def test_arrays_in_files_of_their_own_belong_together_and_name_the_rows(tmp_path: Path) -> None:
    names = np.array([[f"im{n}.jpg"] for n in range(ROWS)], dtype=object)
    savemat(tmp_path / "mirflickr25k-fall.mat", {"FAll": names})
    savemat(tmp_path / "mirflickr25k-lall.mat", {"LAll": L.astype(np.uint8)})
    savemat(tmp_path / "mirflickr25k-yall.mat", {"YAll": Y})
    write_v73(tmp_path / "mirflickr25k-iall.mat", {"IAll": np.zeros((4, 4, 3, ROWS), dtype=np.uint8)})
    out = imported(tmp_path, *sorted(file.name for file in tmp_path.glob("*.mat")))
    assert [row["key"] for row in out.rows] == [f"im{n}.jpg" for n in range(ROWS)]
    assert [row["labels"] for row in out.rows] == LABELS


def test_sets_become_splits_and_train_rows_are_not_repeated_in_retrieval(tmp_path: Path) -> None:
    classes = np.arange(ROWS).reshape(-1, 1) % 3
    parts = {"tr": slice(1, 4), "db": slice(1, 7), "te": slice(0, 1)}
    arrays = {f"{name}_{end}": a[s] for name, a in [("I", X), ("T", Y)] for end, s in parts.items()}
    savemat(tmp_path / "a.mat", arrays | {f"L_{end}": classes[s] for end, s in parts.items()})
    out = imported(tmp_path, "a.mat")
    assert [row["split"] for row in out.rows] == ["train"] * 3 + ["retrieval"] * 3 + ["query"]
    order = [1, 2, 3, 4, 5, 6, 0]
    np.testing.assert_array_equal([row["image_features"] for row in out.rows], X[order])
    assert [row["labels"] for row in out.rows] == [[n % 3] for n in order]
    assert len({row["key"] for row in out.rows}) == ROWS


def test_a_set_of_one_row_is_understood(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"I_tr": X, "T_tr": Y, "I_te": X[:1], "T_te": Y[:1]})
    assert [row["split"] for row in imported(tmp_path, "a.mat").rows] == ["train"] * ROWS + ["query"]


def test_features_that_are_not_finite_are_rejects(tmp_path: Path) -> None:
    broken = X.copy()
    broken[2, 1], broken[5, 0] = np.nan, np.inf
    savemat(tmp_path / "a.mat", {"XAll": broken, "YAll": Y, "LAll": L})
    out = imported(tmp_path, "a.mat")
    assert out.reasons() == {"000000002": "feature not finite", "000000005": "feature not finite"}
    np.testing.assert_array_equal([row["image_features"] for row in out.rows], X[[0, 1, 3, 4, 6]])


def test_other_names_can_be_given(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"gist": X, "bow": Y, "XAll": X[:, :2]})
    source = MatFeatures(folder_of(tmp_path), ["a.mat"], columns={"image": "gist", "text": "bow"})
    rows = import_into(tmp_path / "out", source).rows
    np.testing.assert_array_equal([row["image_features"] for row in rows], X)
    assert "labels" not in rows[0]


@pytest.mark.parametrize(
    ("arrays", "columns", "message"),
    [
        (
            {"foo": X, "bar": Y},
            {},
            r"no known layout; expected YAll and LAll with .*; found: foo 7x5, bar 7x4",
        ),
        ({}, {}, r"found: no arrays"),
        ({"XAll": X}, {}, r"no known layout"),
        ({"XAll": X, "YAll": Y}, {"text": "tags"}, r"no array 'tags'; expected"),
        ({"XAll": X, "YAll": Y[:6]}, {}, r"no number of rows is common to image 7x5, text 6x4"),
        ({"XAll": X[:5], "YAll": X[:5].T}, {}, None),
        ({"XAll": np.zeros((3, 5)), "YAll": np.zeros((5, 3))}, {}, r"cannot tell the rows from the columns"),
        ({"I_tr": X, "T_tr": Y, "I_te": X[:, :3], "T_te": Y}, {}, r"the sets differ in their arrays or in"),
        ({"IAll": np.zeros((ROWS, 4, 4, 2)), "YAll": Y}, {}, r"must have an axis of 3 colours"),
        (
            {"IAll": np.full((4, 4, 3, ROWS), -3.5), "YAll": Y},
            {},
            r"whole numbers from 0 to 255, got float64",
        ),
    ],
)
def test_another_layout_is_one_clear_line(
    arrays: dict[str, Any], columns: dict[str, str], message: str | None, tmp_path: Path
) -> None:
    savemat(tmp_path / "a.mat", arrays)
    if message is None:  # a square array does not tell its rows, another one does
        assert len(imported(tmp_path, "a.mat").rows) == 5
        return
    with pytest.raises(ValueError, match=message) as raised:
        import_into(tmp_path / "out", MatFeatures(folder_of(tmp_path), ["a.mat"], columns=columns))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("write", [write_v73, savemat])
def test_a_damaged_file_is_one_clear_line(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "whole.mat", {"XAll": np.zeros((ROWS, 5000)), "YAll": Y})
    data = (tmp_path / "whole.mat").read_bytes()
    for size in (0, 100, len(data) // 2):
        (tmp_path / "a.mat").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"a.mat: no .mat file, or damaged"):
            MatFeatures(folder_of(tmp_path), ["a.mat"])
