"""ustar headers: made for many members at once, and read back (docs/format.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.format.layout import BLOCK, MAX_MEMBER_BYTES, padded

_CHECKSUM = slice(148, 156)
_OCTAL_SHIFTS = np.arange(30, -1, -3, dtype=np.uint64)


def _template() -> NDArray[np.uint8]:
    header = bytearray(BLOCK)
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[136:148] = b"00000000000\0"
    header[_CHECKSUM] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    return np.frombuffer(bytes(header), np.uint8)


_TEMPLATE = _template()
_BYTES = _TEMPLATE.tobytes()
_TEMPLATE_SUM = np.uint64(int(_TEMPLATE.sum()))


def headers(names: NDArray[np.bytes_], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n, 512) uint8 ustar headers for members of the given names (`S<=100`) and byte sizes.

    Raises OverflowError for a size beyond MAX_MEMBER_BYTES.
    """
    if len(sizes) and int(sizes.max()) > MAX_MEMBER_BYTES:
        raise OverflowError(f"a tar member of {int(sizes.max())} bytes (at most 8 GiB - 1)")
    blocks = np.tile(_TEMPLATE, (len(sizes), 1))
    width = names.dtype.itemsize
    letters = names.view(np.uint8).reshape(len(sizes), width)
    octal = _octal(sizes.astype(np.uint64), 11)
    sums = _TEMPLATE_SUM + letters.sum(axis=1, dtype=np.uint64) + octal.sum(axis=1, dtype=np.uint64)
    blocks[:, :width] = letters
    blocks[:, 124:135] = octal
    blocks[:, 148:154] = _octal(sums, 6)
    blocks[:, 154] = 0
    return blocks


def _header(name: bytes, size: int) -> bytes:
    """The header of one member: quicker than arrays of one element."""
    digits = b"%011o" % size
    total = int(_TEMPLATE_SUM) + sum(name) + sum(digits)
    parts = name.ljust(100, b"\0"), _BYTES[100:124], digits, _BYTES[135:148]
    return b"".join((*parts, b"%06o\0 " % total, _BYTES[156:]))


def _octal(values: NDArray[np.uint64], n_digits: int) -> NDArray[np.uint8]:
    """(n, n_digits) uint8: the values in ASCII octal digits. 10 in three is (10 >> [6, 3, 0]) & 7,
    [0, 1, 2]: "012"."""
    digits = (values[:, None] >> _OCTAL_SHIFTS[-n_digits:]) & np.uint64(7)
    return digits.astype(np.uint8) + np.uint8(ord("0"))


def member(name: str, data: bytes) -> bytes:
    """One whole member: header, data, zeros up to the next block."""
    header = headers(np.array([name.encode()], dtype="S100"), np.array([len(data)]))
    return header.tobytes() + data + bytes(padded(len(data)) - len(data))


@dataclass(frozen=True, slots=True)
class Member:
    """Where one member of a tar stream is."""

    name: str
    offset: int
    """Where the member's header is, bytes from the start of the stream."""
    size: int
    """Bytes of the member's data, which begins at offset + 512."""

    @property
    def data(self) -> slice:
        """The member's data as a slice of the stream."""
        return slice(self.offset + BLOCK, self.offset + BLOCK + self.size)

    @property
    def end(self) -> int:
        """The offset after the data and its padding."""
        return self.offset + BLOCK + padded(self.size)


def walk(stream: memoryview, start: int, stop: int) -> Iterator[Member]:
    """The members whose headers lie in `stream[start:stop]`; ends at a zero block.

    Raises ValueError where a header is not plain ustar as docs/format.md fixes it.
    """
    offset = start
    while offset < stop:
        block = bytes(stream[offset : offset + BLOCK])
        if len(block) < BLOCK:
            raise ValueError(f"the file ends inside the header at byte {offset}")
        if not any(block):
            return
        found = parse_header(block, offset)
        if found.end > stop:
            raise ValueError(f"member {found.name!r} at byte {offset} reaches beyond its bounds")
        yield found
        offset = found.end


def skim(stream: memoryview, start: int, n: int) -> list[memoryview]:
    """The data of `n` members from the header at `start` on, by their size fields alone.

    For bytes whose hash was seen to be right; `walk` looks at the whole of each header. Raises
    ValueError where a member has no size, or reaches beyond the stream.
    """
    found = []
    for _ in range(n):
        begin = start + BLOCK
        end = begin + int(bytes(stream[start + 124 : start + 135]), 8)
        if not begin <= end <= len(stream):
            raise ValueError(f"the member at byte {start} reaches beyond its bounds")
        found.append(stream[begin:end])
        start = begin + padded(end - begin)
    return found


def parse_header(block: bytes, offset: int) -> Member:
    """The member that a header block at `offset` describes.

    Raises ValueError unless it is, byte for byte, the header that this module would write.
    """
    name = block[:100].rstrip(b"\0")
    try:
        size = int(block[124:135], 8)
        text = name.decode("ascii")
    except ValueError:
        raise ValueError(f"no tar header at byte {offset}") from None
    if size < 0 or _header(name, size) != block:
        raise ValueError(f"the tar header at byte {offset} is not plain ustar, or is damaged")
    return Member(text, offset, size)
