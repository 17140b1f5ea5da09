"""Rows of Parquet files and of folders saved by `datasets.save_to_disk` (Arrow streams)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.errors import BadInput, MissingPackage


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as err:
        raise MissingPackage(
            "reading Parquet and Arrow needs pyarrow", fix='pip install "shardkit[parquet]"'
        ) from err


def parquet_rows(path: Path) -> int:
    """Rows of a Parquet file; raises BadInput when it is not one."""
    return int(_parquet(str(path)).metadata.num_rows)


def arrow_files(folder: Path) -> list[Path]:
    """The data files of a folder saved by `datasets.save_to_disk`, in order."""
    state = folder / "state.json"
    if not state.is_file():
        raise BadInput(
            "this folder was not saved by datasets.save_to_disk",
            where=str(folder),
            expected="state.json",
            fix="Give its files one by one or as a glob, or one split of a DatasetDict.",
        )
    fields = json.loads(state.read_text())
    return [folder / entry["filename"] for entry in fields.get("_data_files", [])]


def arrow_rows(folder: Path) -> int:
    """Rows of a folder saved by `datasets.save_to_disk`."""
    return sum(table.num_rows for table in _arrow(str(folder)))


def parquet_objects(path: str, first: int, last: int) -> Iterator[object]:
    """Rows first to last - 1 as objects; reads only the row groups that hold them."""
    file = _parquet(path)
    begin = 0
    for group in range(file.metadata.num_row_groups):
        n_rows = file.metadata.row_group(group).num_rows
        if begin + n_rows > first and begin < last:
            table = file.read_row_group(group)
            low, high = max(first - begin, 0), min(last - begin, n_rows)
            yield from table.slice(low, high - low).to_pylist()
        begin += n_rows


def arrow_objects(folder: str, first: int, last: int) -> Iterator[object]:
    """Rows first to last - 1 as objects."""
    begin = 0
    for table in _arrow(folder):
        if begin + table.num_rows > first and begin < last:
            low, high = max(first - begin, 0), min(last - begin, table.num_rows)
            yield from table.slice(low, high - low).to_pylist()
        begin += table.num_rows


@lru_cache(maxsize=4)
def _parquet(path: str) -> Any:
    pyarrow = _pyarrow()
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as err:
        raise BadInput(
            f"not readable as Parquet: {err}", where=path, fix="Write or fetch the file again."
        ) from err


@lru_cache(maxsize=4)
def _arrow(folder: str) -> list[Any]:
    pyarrow = _pyarrow()
    tables = []
    for file in arrow_files(Path(folder)):
        try:
            with pyarrow.memory_map(str(file)) as mapped:
                tables.append(pyarrow.ipc.open_stream(mapped).read_all())
        except (pyarrow.ArrowException, OSError) as err:
            raise BadInput(
                f"not readable as Arrow: {err}", where=str(file), fix="Save the dataset again."
            ) from err
    return [_with_indices(folder, table) for table in tables]


def _with_indices(folder: str, table: Any) -> Any:
    state = json.loads((Path(folder) / "state.json").read_text())
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadInput(
            "the folder holds a row selection beside its data",
            where=folder,
            fix="Call dataset.flatten_indices() before save_to_disk.",
        )
    columns = state.get("_format_columns")
    return table.select(columns) if columns else table


def as_ints(value: object) -> tuple[int, ...]:
    """A list column's value as integers; raises TypeError or ValueError."""
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError("not a list of integers")
    return tuple(array.tolist())
