"""Arrays of .mat files by name and rows: version 5 through scipy, version 7.3 through h5py.

Shapes are given as MATLAB shows them. A version 7.3 file is HDF5 with all axes reversed; HDF5 without
MATLAB's own header was written by another program and is taken as it stands.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.corpus.importers.rows import InputFolder

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # MATLAB's header before the HDF5 part of a version 7.3 file


class MatArray(Protocol):
    """One array of a file."""

    shape: tuple[int, ...]

    def rows(self, start: int, stop: int, *, axis: int) -> np.ndarray:
        """Return a range along one axis, that axis first and the others in MATLAB's order."""


def open_mat(folder: InputFolder, name: str) -> dict[str, MatArray]:
    """Return the numeric arrays of a file, and its lists of strings, by name.

    A version 5 file is read whole (MATLAB lets none of its arrays exceed 2 GB); of version 7.3 only the rows
    asked for.

    Raises:
        ValueError: it is no .mat file, or damaged.
        ImportError: scipy or h5py is not installed.
    """
    stream = folder.open(name)
    head = bytes(stream.read(_USER_BLOCK + len(_HDF5)))
    stream.seek(0)
    where = folder.where(name)
    try:
        if head.startswith(_HDF5) or head.endswith(_HDF5):
            return _open_hdf5(stream, reverse=head.startswith(b"MATLAB"))
        return _open_version5(stream)
    except ImportError as error:
        raise ImportError(f"{where}: reading .mat files needs `pip install '.[import]'`") from error
    except Exception as error:  # the parsers raise whatever a damaged file leads them to
        message = " ".join(str(error).split())
        raise ValueError(f"{where}: no .mat file, or damaged: {type(error).__name__}: {message}") from error


class _Loaded:
    """An array in memory, dense or a sparse matrix."""

    def __init__(self, values: Any) -> None:
        self.shape = tuple(int(size) for size in values.shape)
        self._values = values

    def rows(self, start: int, stop: int, *, axis: int) -> np.ndarray:
        if hasattr(self._values, "tocsr"):
            matrix = self._values if axis == 0 else self._values.T
            return np.asarray(matrix.tocsr()[start:stop].toarray())
        return np.moveaxis(self._values, axis, 0)[start:stop]


class _Stored:
    """A data set of an HDF5 file, read in ranges."""

    def __init__(self, dataset: Any, *, reverse: bool) -> None:
        self._dataset, self._reverse = dataset, reverse
        self.shape = tuple(dataset.shape[::-1] if reverse else dataset.shape)

    def rows(self, start: int, stop: int, *, axis: int) -> np.ndarray:
        places = [slice(None)] * len(self.shape)
        places[axis] = slice(start, stop)
        values = self._dataset[tuple(places[::-1] if self._reverse else places)]
        return np.moveaxis(values.T if self._reverse else values, axis, 0)


def _open_version5(stream: pa.NativeFile) -> dict[str, MatArray]:
    from scipy.io import loadmat

    content: Mapping[str, Any] = loadmat(stream, chars_as_strings=True)
    arrays: dict[str, MatArray] = {}
    for name, value in content.items():
        if not name.startswith("__") and hasattr(value, "shape"):
            values = _strings(value) if value.dtype.kind == "O" else value
            if values is not None and values.dtype.kind in "biufU":
                arrays[name] = _Loaded(values)
    return arrays


def _strings(cells: np.ndarray) -> np.ndarray | None:
    """Return a cell array of strings as an array of strings, None of other cells."""
    flat = [cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell for cell in cells.flat]
    return np.array(flat).reshape(cells.shape) if all(isinstance(cell, str) for cell in flat) else None


def _open_hdf5(stream: pa.NativeFile, *, reverse: bool) -> dict[str, MatArray]:
    import h5py

    file = h5py.File(stream, "r")
    arrays: dict[str, MatArray] = {}
    for name, item in file.items():
        if name.startswith("#"):
            continue
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf" and item.ndim >= 2:
            arrays[name] = _Stored(item, reverse=reverse)
        elif isinstance(item, h5py.Group) and "MATLAB_sparse" in item.attrs:
            arrays[name] = _Loaded(_sparse(item))
    return arrays


def _sparse(group: Any) -> Any:
    from scipy.sparse import csc_matrix

    starts = group["jc"][()].astype(np.int64)
    shape = (int(group.attrs["MATLAB_sparse"]), len(starts) - 1)
    if "data" not in group:  # a sparse matrix of nothing but zeros
        return csc_matrix(shape)
    return csc_matrix((group["data"][()], group["ir"][()].astype(np.int64), starts), shape=shape)
