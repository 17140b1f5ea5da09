"""Where the rows of a regular JSON array begin and end: of one that a program wrote.

Programs put the same bytes between all rows. Then the JSON parser need only say how long each row
is, which is ten times quicker than following every bracket. A row's place is proven by the row
before it: that ends where its length says, the separator stands there, and the next row begins.
Where that does not hold, ArrayFinder goes on from the last row that is proven.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.sources.json_rows import COMMA, IS_SPACE, SPACE, ArrayFinder, Borders, Finder

_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NO_ROWS = np.zeros((0, 2), np.uint64)
_N_LEARNED = 8
"""Rows that show how rows begin and end."""
_MAX_WAITING = 8 << 20
"""Bytes without an end of a row that are kept, before ArrayFinder goes on."""
_OPENING, _CLOSING = b"[]"


@dataclass(frozen=True, slots=True)
class Fence:
    """What stands between two rows, and what rows have around it."""

    tail: bytes
    """How rows end."""
    before: bytes
    """White space before the comma."""
    after: bytes
    """White space behind the comma."""
    head: bytes
    """How rows begin."""

    @classmethod
    def of(cls, rows: list[bytes]) -> Fence:
        """The fence that these rows, cut at their commas, show."""
        solid = [row.strip(SPACE) for row in rows]
        first, second = rows[0], rows[1]
        return cls(
            tail=_common_start([row[::-1] for row in solid])[::-1],
            before=first[len(first.rstrip(SPACE)) :],
            after=second[: len(second) - len(second.lstrip(SPACE))],
            head=_common_start(solid),
        )

    @property
    def whole(self) -> bytes:
        """All that stands between two rows."""
        return self.before + b"," + self.after

    @property
    def mark(self) -> bytes:
        """What the end of a row, a border and the next row's begin look like together."""
        return self.tail + self.whole + self.head

    @property
    def comma(self) -> int:
        """Where in `mark` the comma between the rows is."""
        return len(self.tail) + len(self.before)


def _common_start(texts: list[bytes]) -> bytes:
    """The bytes that all texts begin with, 32 at most."""
    least, most = min(texts)[:32], max(texts)[:32]
    n = 0
    while n < min(len(least), len(most)) and least[n] == most[n]:
        n += 1
    return least[:n]


class RegularFinder:
    """A JSON array; finds what ArrayFinder finds, and quicker where rows are set apart alike."""

    def __init__(self) -> None:
        self._careful: Finder | None = ArrayFinder()
        self._fence = Fence(b"", b"", b"", b"")
        self._is_begun = False
        self._waiting = bytearray()
        """What follows the last comma between rows; in place of that comma a bracket."""
        self._offset = 0
        """Where `_waiting` begins in the file."""

    @classmethod
    def at_comma(cls, offset: int, fence: Fence) -> RegularFinder:
        """One that is fed from the byte behind the comma at `offset` on, which is between rows."""
        finder = cls()
        finder._fence, finder._offset, finder._careful = fence, offset, None
        finder._waiting += b"["
        return finder

    @property
    def fence(self) -> Fence | None:
        """What stands between rows, while all of them are set apart alike."""
        return self._fence if self._careful is None else None

    @property
    def proven(self) -> int:
        """The comma up to which rows were found, while `fence` is known."""
        return self._offset

    def feed(self, block: bytes) -> Borders:
        """The rows that end in this block."""
        if self._careful is not None:
            rows = self._careful.feed(block)
            if not self._is_begun:
                self._is_begun = True
                self._learn(block, rows)
            return rows
        self._waiting += block
        proven = self._proven()
        if proven is None or len(self._waiting) > _MAX_WAITING:
            return self._go_on_carefully()
        return proven

    def finish(self) -> Borders:
        """The rows that the end of the file ends; SyntaxProblem when it ends too early."""
        if self._careful is None:
            rows = self._go_on_carefully()
            return np.concatenate([rows, self.finish()])
        return self._careful.finish()

    def _learn(self, block: bytes, rows: Borders) -> None:
        """See from the rows of the first block what stands between them."""
        if len(rows) < 2 or block[int(rows[-1, 1])] != COMMA:
            return
        self._fence = Fence.of([block[a:b] for a, b in rows[:_N_LEARNED].tolist()])
        self._offset, self._careful = int(rows[-1, 1]), None
        self._waiting += block[self._offset :]
        self._waiting[0] = _OPENING

    def _proven(self) -> Borders | None:
        """The rows up to the last place that looks like a border; None when it is none."""
        fence, waiting = self._fence, self._waiting
        at = waiting.rfind(fence.mark)
        if at < 0:
            return _NO_ROWS
        ends = _ends_of_rows(waiting, at + len(fence.tail), fence)
        if ends is None:
            return None
        commas = ends + len(fence.before)
        rows = np.stack([np.concatenate([[0], commas[:-1]]) + 1, commas], axis=1) + self._offset
        self._offset += int(commas[-1])
        del waiting[: int(commas[-1])]
        waiting[0] = _OPENING
        return rows.astype(np.uint64)

    def _go_on_carefully(self) -> Borders:
        """Leave the rest of the file to ArrayFinder."""
        self._careful = ArrayFinder.at_row(self._offset + 1)
        rest = bytes(self._waiting[1:])
        self._waiting.clear()
        return self._careful.feed(rest)


def _ends_of_rows(text: bytearray, end: int, fence: Fence) -> NDArray[np.int64] | None:
    """Where the rows end that `text`, from its bracket to `end`, should consist of.

    None when it does not, or when anything else than the fence stands between two of them.

    Rows of 2 and 3 bytes with a comma and a space between: `[ aa, bbb` has ends
    1 + 1 + [2, 5] + 2 * [0, 1] = [4, 9].
    """
    lengths = _lengths_of_rows(text, end)
    if lengths is None or not len(lengths):  # two commas with nothing between them
        return None
    whole = np.frombuffer(fence.whole, np.uint8)
    ends = 1 + len(fence.after) + np.cumsum(lengths) + len(whole) * np.arange(len(lengths))
    if int(ends[-1]) != end or text[1 : 1 + len(fence.after)] != fence.after:
        return None
    data = np.frombuffer(text, np.uint8)
    is_between = data[ends[:-1, None] + np.arange(len(whole))] == whole
    if not is_between.all() or IS_SPACE[data[ends - lengths]].any():
        return None
    return ends


def _lengths_of_rows(text: bytearray, end: int) -> NDArray[np.int64] | None:
    """Bytes of each row, as the parser cuts them; `text` ends with them while it looks."""
    follows, text[end] = text[end], _CLOSING
    try:
        rows = _decode(memoryview(text)[: end + 1])
        return np.fromiter(map(len, rows), np.int64, len(rows))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    finally:
        text[end] = follows
