"""Where the rows of a JSON array or of JSONL begin and end, in one pass over blocks of bytes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Borders = NDArray[np.uint64]
"""(n, 2) uint64 byte offsets: begin and end of each row."""

COMMA = b","[0]
SPACE = b" \t\r\n"
_QUOTE, _BACKSLASH, _NEWLINE = b'"'[0], b"\\"[0], b"\n"[0]
_STRUCTURE = np.zeros(256, np.int8)
_STRUCTURE[[ord(c) for c in "{["]] = 1
_STRUCTURE[[ord(c) for c in "}]"]] = -1
"""(256,) by byte: 1 for a bracket that opens, -1 for one that closes."""
_IS_INTERESTING = _STRUCTURE != 0
_IS_INTERESTING[[_QUOTE, COMMA]] = True
IS_SPACE = np.zeros(256, np.bool_)
IS_SPACE[list(SPACE)] = True


class SyntaxProblem(Exception):
    """The file's structure is broken at a byte offset."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what = what
        self.offset = offset


class Finder(Protocol):
    """Finds rows in a stream that is fed block by block."""

    def feed(self, block: bytes) -> Borders:
        """The rows that end in this block."""

    def finish(self) -> Borders:
        """The rows that the end of the file ends; SyntaxProblem when it ends too early."""


class LineFinder:
    """JSONL: a row a line; lines of white space are no rows. The first begins at byte `start`."""

    def __init__(self, start: int = 0) -> None:
        self._offset = 0
        self._begin = start
        self._is_blank = True

    @classmethod
    def at_line(cls, offset: int) -> LineFinder:
        """One that is fed from byte `offset` on, where a line begins."""
        finder = cls(offset)
        finder._offset = offset
        return finder

    def feed(self, block: bytes) -> Borders:
        """The rows that end in this block."""
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == _NEWLINE)
        rows = self._rows(data, ends)
        last = int(ends[-1]) + 1 if len(ends) else 0
        rest_is_blank = bool(IS_SPACE[data[last:]].all())
        self._is_blank = rest_is_blank and (self._is_blank or bool(len(ends)))
        if len(ends):
            self._begin = self._offset + last
        self._offset += len(block)
        return rows

    def finish(self) -> Borders:
        """The last line, where the file does not end with a line break."""
        rows = [] if self._is_blank else [(self._begin, self._offset)]
        return np.array(rows, np.uint64).reshape(-1, 2)

    def _rows(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> Borders:
        """The rows of a block whose lines end at `ends`.

        "a", an empty line and " b": ends [1, 2, 5], begins [0, 2, 3]. By its first byte only the
        first is a row; the third begins with a space, so it is looked at whole.
        """
        begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
        is_row = ~IS_SPACE[data[begins]]
        for i in np.flatnonzero(~is_row & (ends > begins)).tolist():
            is_row[i] = not IS_SPACE[data[begins[i] : ends[i]]].all()
        if len(ends) and not self._is_blank:
            is_row[0] = True
        rows = np.stack([begins, ends], axis=1) + self._offset
        if len(ends):
            rows[0, 0] = self._begin
        kept: Borders = rows[is_row].astype(np.uint64)
        return kept


class ArrayFinder:
    """A JSON array: rows are what stands between its commas. Strings and nesting are followed."""

    def __init__(self) -> None:
        self._offset = 0
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._begin = 0
        self._has_content = False
        self._n_rows = 0
        self._is_done = False

    @classmethod
    def at_row(cls, offset: int) -> ArrayFinder:
        """One that is fed from byte `offset` on, where the comma before a row was just read."""
        finder = cls()
        finder._offset = finder._begin = offset
        finder._depth = 1
        finder._n_rows = 1
        return finder

    def feed(self, block: bytes) -> Borders:
        """The rows that end in this block."""
        data = np.frombuffer(block, np.uint8)
        if self._is_done:
            self._check_after(data, 0)
            self._offset += len(block)
            return np.zeros((0, 2), np.uint64)
        marks, depths = self._marks(data)
        rows = self._rows(data, marks, depths)
        self._offset += len(block)
        return rows

    def finish(self) -> Borders:
        """No more rows; SyntaxProblem when the file ends inside the array."""
        if not self._is_done:
            raise SyntaxProblem("the file ends inside the array", self._offset)
        return np.zeros((0, 2), np.uint64)

    def _marks(self, data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of brackets and commas outside strings, and the depth after each.

        `[1,"a,b"]` has quotes at [3, 7]; brackets and commas at [0, 2, 5, 8] have [0, 0, 1, 2]
        quotes before them, and an odd number is inside: marks [0, 2, 8], depths [1, 1, 0].
        """
        places = np.flatnonzero(_IS_INTERESTING[data])
        escaped = self._escaped(data)
        kinds = data[places]
        quotes = places[kinds == _QUOTE]
        quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)] if len(escaped) else quotes
        others = places[kinds != _QUOTE]
        inside = (np.searchsorted(quotes, others) + self._in_string) % 2 == 1
        marks = others[~inside]
        depths = self._depth + np.cumsum(_STRUCTURE[data[marks]], dtype=np.int64)
        self._in_string ^= bool(len(quotes) % 2)
        return marks, depths

    def _escaped(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Places of the characters that a backslash escapes.

        A run of an odd number of backslashes escapes what follows it. Backslashes at [2, 3, 4, 8]:
        runs begin at [2, 8], are [3, 1] long, and escape [5, 9].
        """
        slashes = np.flatnonzero(data == _BACKSLASH)
        if not len(slashes):
            first = [0] if self._is_escaped else []
            self._is_escaped = False
            return np.array(first, np.int64)
        is_begin = np.concatenate([[True], np.diff(slashes) != 1])
        begins = slashes[is_begin]
        lengths = np.diff(np.concatenate([np.flatnonzero(is_begin), [len(slashes)]]))
        if self._is_escaped and begins[0] == 0:
            begins, lengths = begins.copy(), lengths.copy()
            begins[0] += 1
            lengths[0] -= 1
        ends = begins + lengths
        targets = ends[lengths % 2 == 1]
        if self._is_escaped and data[0] != _BACKSLASH:
            targets = np.concatenate([[0], targets])
        self._is_escaped = bool(len(targets)) and int(targets[-1]) == len(data)
        inside: NDArray[np.int64] = targets[targets < len(data)]
        return inside

    def _rows(
        self, data: NDArray[np.uint8], marks: NDArray[np.int64], depths: NDArray[np.int64]
    ) -> Borders:
        """The rows that end at these marks: at commas of depth 1, and at the array's last bracket.

        `[1,[2]]` has marks at [0, 2, 3, 5, 6] with depths [1, 1, 2, 1, 0]: borders at 2 and 6, rows
        1:2 and 3:6.
        """
        chars = data[marks]
        opens = _STRUCTURE[chars] == 1
        before = depths - _STRUCTURE[chars]
        is_start = opens & (before == 0)
        is_border = ((chars == COMMA) & (depths == 1)) | ((depths == 0) & ~opens)
        first = 0
        if self._depth == 0 and is_start.any():
            first = int(np.argmax(is_start))
            self._begin = self._offset + int(marks[first]) + 1
            first += 1
        closing = np.flatnonzero((depths <= 0) & ~opens & (np.arange(len(marks)) >= first))
        stop = int(closing[0]) + 1 if len(closing) else len(marks)
        borders = marks[first:stop][is_border[first:stop]]
        begins = np.concatenate([[self._begin - self._offset], borders[:-1] + 1])[: len(borders)]
        content = self._content(data, begins, borders, marks[first:stop][opens[first:stop]])
        self._check_rows(content, borders, bool(len(closing)))
        if len(borders):
            self._begin = self._offset + int(borders[-1]) + 1
        self._carry(data, borders, depths, stop, bool(len(closing)), marks)
        rows = np.stack([begins, borders], axis=1)[content] + self._offset
        self._n_rows += len(rows)
        return rows.astype(np.uint64)

    def _content(
        self,
        data: NDArray[np.uint8],
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        brackets: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Whether anything but white space stands in each piece."""
        content = np.searchsorted(brackets, ends) > np.searchsorted(brackets, begins)
        if len(ends) and self._has_content:
            content[0] = True
        for i in np.flatnonzero(~content).tolist():
            content[i] = not IS_SPACE[data[max(int(begins[i]), 0) : int(ends[i])]].all()
        return content

    def _check_rows(
        self, content: NDArray[np.bool_], borders: NDArray[np.int64], is_closed: bool
    ) -> None:
        empty = np.flatnonzero(~content)
        if not len(empty):
            return
        last = len(borders) - 1
        is_empty_array = is_closed and int(empty[0]) == last and self._n_rows + last == 0
        if is_empty_array:
            return
        at = self._offset + int(borders[empty[0]])
        if is_closed and int(empty[0]) == last:
            raise SyntaxProblem("a comma before the closing bracket of the array", at)
        raise SyntaxProblem("two commas with nothing between them", at)

    def _carry(
        self,
        data: NDArray[np.uint8],
        borders: NDArray[np.int64],
        depths: NDArray[np.int64],
        stop: int,
        is_closed: bool,
        marks: NDArray[np.int64],
    ) -> None:
        if is_closed:
            if int(depths[stop - 1]) < 0:
                raise SyntaxProblem("a bracket too many", self._offset + int(marks[stop - 1]))
            self._is_done = True
            self._check_after(data, int(marks[stop - 1]) + 1)
            return
        begin = int(borders[-1]) + 1 if len(borders) else max(self._begin - self._offset, 0)
        fresh = not IS_SPACE[data[begin:]].all()
        self._has_content = fresh if len(borders) else (self._has_content or fresh)
        if len(depths):
            self._depth = int(depths[-1])

    def _check_after(self, data: NDArray[np.uint8], begin: int) -> None:
        rest = np.flatnonzero(~IS_SPACE[data[begin:]])
        if len(rest):
            at = self._offset + begin + int(rest[0])
            raise SyntaxProblem("something stands after the end of the array", at)
