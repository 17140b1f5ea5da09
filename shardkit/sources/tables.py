"""Rows of Parquet files and of folders saved by `datasets.save_to_disk` (Arrow streams).

Files are not trusted: what pyarrow cannot read is a BadInput that names the file, and a row that
cannot be an object is a Reject.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shardkit.conversation import Reason, Reject
from shardkit.errors import BadInput, MissingPackage
from shardkit.sources.cells import Dropped, cell_readers, is_sound_but_for_text
from shardkit.sources.json_value import NotJson

KEPT_GROUP = 256 << 20
"""Bytes of a row group, uncompressed, up to which it is kept whole between parts."""
BATCH_ROWS = 4096
Stamp = tuple[int, int, int]
"""Inode, size and mtime (ns) of a file."""
_READ_AGAIN = "Write or fetch the file again."


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
    """The data files of a folder saved by `datasets.save_to_disk`, in order; raises BadInput."""
    entries = _state(folder).get("_data_files")
    if not isinstance(entries, list):
        raise _bad_state(folder, "_data_files is no list")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
            raise _bad_state(folder, f"{str(name)[:80]!r} is no file name")
        if not (folder / name).is_file():
            raise BadInput(
                "a data file of the folder is missing",
                where=str(folder / name),
                fix="Save the dataset again, or copy the whole folder.",
            )
    return [folder / str(name) for name in names]


def _state(folder: Path) -> dict[str, Any]:
    state = folder / "state.json"
    if not state.is_file():
        raise BadInput(
            "this folder was not saved by datasets.save_to_disk",
            where=str(folder),
            expected="state.json",
            fix="Give its files one by one or as a glob, or one split of a DatasetDict.",
        )
    try:
        found = msgspec.json.decode(state.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as err:
        raise _bad_state(folder, str(err)) from err
    if not isinstance(found, dict):
        raise _bad_state(folder, "it is no object")
    return found


def _bad_state(folder: Path, problem: str) -> BadInput:
    return BadInput(
        f"state.json is not what datasets.save_to_disk writes: {problem}",
        where=str(folder / "state.json"),
        fix="Save the dataset again.",
    )


def arrow_rows(folder: Path) -> int:
    """Rows of a folder saved by `datasets.save_to_disk`; raises BadInput."""
    _ = _state(folder)
    return sum(table.num_rows for table in _arrow(str(folder)))


def parquet_objects(
    path: str, first: int, last: int, dropped: Dropped | None = None
) -> Iterator[object]:
    """Rows first to last - 1 as objects, or Rejects; reads only the row groups that hold them."""
    file = _parquet(path)
    begin = 0
    for group in range(file.metadata.num_row_groups):
        n_rows = file.metadata.row_group(group).num_rows
        if begin + n_rows > first and begin < last:
            low, high = max(first - begin, 0), min(last - begin, n_rows)
            for table in _group_slices(path, group, low, high):
                yield from _objects(table, path, dropped)
        begin += n_rows


def _group_slices(path: str, group: int, low: int, high: int) -> Iterator[Any]:
    """Rows low to high - 1 of a row group, as tables."""
    stamp = _stamp(Path(path))
    if _parquet(path).metadata.row_group(group).total_byte_size <= KEPT_GROUP:
        yield _group(path, group, stamp).slice(low, high - low)
        return
    cursor = _cursor(path, group, stamp)
    while low < high:
        batch = cursor.at(low)
        n = min(high, cursor.begin + batch.num_rows) - low
        yield batch.slice(low - cursor.begin, n)
        low += n


@lru_cache(maxsize=1)
def _group(path: str, group: int, stamp: Stamp) -> Any:
    with _reading(path, f"row group {group}"):
        return _parquet(path).read_row_group(group)


@lru_cache(maxsize=1)
def _cursor(path: str, group: int, stamp: Stamp) -> _Cursor:
    return _Cursor(path, group)


class _Cursor:
    """A place in a row group that is too large to be kept whole; it moves on, batch by batch."""

    def __init__(self, path: str, group: int) -> None:
        self._path, self._number = path, group
        self._restart()

    def _restart(self) -> None:
        file = _parquet(self._path)
        self._batches = file.iter_batches(BATCH_ROWS, row_groups=[self._number])
        self._batch: Any = None
        self.begin = 0

    def at(self, row: int) -> Any:
        """The batch that holds this row of the group."""
        if row < self.begin:
            self._restart()
        with _reading(self._path, f"row group {self._number}"):
            while self._batch is None or row >= self.begin + self._batch.num_rows:
                self.begin += self._batch.num_rows if self._batch is not None else 0
                self._batch = next(self._batches)
        return self._batch


def arrow_objects(
    folder: str, first: int, last: int, dropped: Dropped | None = None
) -> Iterator[object]:
    """Rows first to last - 1 as objects, or Rejects."""
    begin = 0
    for table in _arrow(folder):
        if begin + table.num_rows > first and begin < last:
            low, high = max(first - begin, 0), min(last - begin, table.num_rows)
            yield from _objects(table.slice(low, high - low), folder, dropped)
        begin += table.num_rows


def _objects(
    table: Any, where: str, dropped: Dropped | None, *, is_sound: bool = False
) -> Iterator[object]:
    """The rows of a table as objects; when that fails, row by row, with Rejects.

    `is_sound`: all but its text is known to be valid.
    """
    errors = _errors()
    try:
        if not is_sound:
            table.validate(full=True)
        rows = table.to_pylist()
    except errors as err:
        if not is_sound and is_sound_but_for_text(_pyarrow(), table):
            yield from _objects(table, where, dropped, is_sound=True)
            return
        if table.num_rows == 1:
            yield Reject(Reason.BAD_RECORD, _unreadable(table, err, is_sound=is_sound))
            return
        half = table.num_rows // 2
        yield from _objects(table.slice(0, half), where, dropped, is_sound=is_sound)
        yield from _objects(table.slice(half), where, dropped, is_sound=is_sound)
        return
    readers = cell_readers(table.schema, {} if dropped is None else dropped)
    for row in rows:
        try:
            for name, read in readers.items():
                row[name] = read(row[name])
        except NotJson as err:
            yield Reject(Reason.BAD_RECORD, f"$.{name}: not JSON: {err}")
            continue
        yield row


def _unreadable(table: Any, err: Exception, *, is_sound: bool) -> str:
    """What is wrong with the only row of a table; of a sound one, in which column."""
    for name, column in zip(table.column_names, table.columns, strict=True) if is_sound else ():
        try:
            column.to_pylist()
        except UnicodeDecodeError as found:
            return f"$.{name}: not UTF-8: {found.reason}"
    return f"not readable: {str(err)[:200]}"


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for what it cannot read."""
    return (_pyarrow().ArrowException, OSError, ValueError, OverflowError)


class _reading:
    """A context in which pyarrow's errors become a BadInput."""

    def __init__(self, path: str, part: str = "") -> None:
        self._where = f"{path}, {part}" if part else path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, _errors()):
            raise BadInput(
                f"not readable: {str(err)[:300]}", where=self._where, fix=_READ_AGAIN
            ) from err


def _stamp(path: Path) -> Stamp:
    """The stamp of a file, by which it is kept open; raises BadInput."""
    try:
        status = path.stat()
    except OSError as err:
        raise BadInput(
            f"cannot be read: {err.strerror}", where=str(path), fix="Check the path."
        ) from err
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parquet(path: str) -> Any:
    return _opened(path, _stamp(Path(path)))


def _arrow(folder: str) -> list[Any]:
    return _tables(folder, _stamp(Path(folder) / "state.json"))


@lru_cache(maxsize=4)
def _opened(path: str, stamp: Stamp) -> Any:
    _pyarrow()
    with _reading(path):
        file = importlib.import_module("pyarrow.parquet").ParquetFile(path)
        _ = file.schema_arrow
        return file


@lru_cache(maxsize=4)
def _tables(folder: str, stamp: Stamp) -> list[Any]:
    pyarrow = _pyarrow()
    state, tables = _state(Path(folder)), []
    for file in arrow_files(Path(folder)):
        with _reading(str(file)), pyarrow.memory_map(str(file)) as mapped:
            table = pyarrow.ipc.open_stream(mapped).read_all()
            tables.append(_with_columns(folder, state, table))
    return tables


def _with_columns(folder: str, state: dict[str, Any], table: Any) -> Any:
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadInput(
            "the folder holds a row selection beside its data",
            where=folder,
            fix="Call dataset.flatten_indices() before save_to_disk.",
        )
    columns = state.get("_format_columns")
    if not columns:
        return table
    if not isinstance(columns, list) or not set(map(str, columns)) <= set(table.column_names):
        raise _bad_state(Path(folder), "_format_columns does not name columns of the data")
    return table.select(columns)


def as_ints(value: object) -> tuple[int, ...]:
    """A list column's value as integers; raises TypeError or ValueError."""
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError("not a list of integers")
    return tuple(array.tolist())
