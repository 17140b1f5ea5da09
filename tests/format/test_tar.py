"""Headers made for many members at once, and one by one, are the same bytes."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.format.layout import MAX_MEMBER_BYTES
from shardkit.format.tar import headers, parse_header


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100),
    st.integers(0, MAX_MEMBER_BYTES),
)
def test_a_header_is_read_back(name: str, size: int) -> None:
    """parse_header, which makes the header again to compare, takes what headers() makes."""
    block = headers(np.array([name.encode()], "S100"), np.array([size])).tobytes()

    found = parse_header(block, 0)

    assert (found.name, found.size) == (name, size)
    assert tarfile.TarInfo.frombuf(block, "ascii", "strict").size == size


@pytest.mark.parametrize("digits", [b"-0000000001", b"+0000000005", b"0_000000005", b"          5"])
def test_a_size_that_int_would_take_is_refused(digits: bytes) -> None:
    """A sign, an underscore or spaces are no octal size, even with a right checksum."""
    block = bytearray(headers(np.array([b"a.npy"], "S100"), np.array([5])).tobytes())
    block[124:135] = digits
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)

    with pytest.raises(ValueError, match="plain ustar"):
        parse_header(bytes(block), 0)


def test_a_flipped_byte_is_refused() -> None:
    """Wherever it is."""
    block = headers(np.array([b"00000000.tokens.npy"], "S100"), np.array([700])).tobytes()
    for i in range(len(block)):
        changed = bytearray(block)
        changed[i] ^= 1
        with pytest.raises(ValueError, match="byte 0"):
            parse_header(bytes(changed), 0)
