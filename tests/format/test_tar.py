"""Headers made for many members at once, and one by one, are the same bytes."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.format.layout import MAX_MEMBER_BYTES
from shardkit.format.tar import headers, member, parse_header, skim, walk


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


@given(st.lists(st.binary(max_size=2_000), max_size=4))
def test_skimming_finds_what_walking_finds(parts: list[bytes]) -> None:
    """The sizes alone lead to the same data as whole headers."""
    stream = memoryview(b"".join(member(f"{k}.bin", part) for k, part in enumerate(parts)))
    walked = [bytes(stream[found.data]) for found in walk(stream, 0, len(stream))]
    assert list(map(bytes, skim(stream, 0, len(parts)))) == walked == parts


def test_skimming_stays_inside() -> None:
    """A size that reaches beyond the stream, or a member that is not there, is refused."""
    stream = bytearray(member("a.bin", b"x" * 700))
    for damaged in (stream[:1000], stream.replace(b"00000001274", b"00000100000"), stream[:100]):
        with pytest.raises(ValueError, match=r"reaches beyond|invalid literal"):
            skim(memoryview(damaged), 0, 1)
