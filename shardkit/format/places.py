"""The members of a shard that the footer finds: read from its stream, and compared with hashes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import CorruptShard
from shardkit.format.canonical import xxh3_hex
from shardkit.format.codec import Stream
from shardkit.format.footer import Extent, Footer, read_footer
from shardkit.format.layout import BLOCK, FOOTER_BYTES, INDEX_DTYPE, MAX_SHARD_SAMPLES, TAIL_BYTES
from shardkit.format.manifest import ShardEntry
from shardkit.format.render import descr_of, npy_header

REBUILD = "Rebuild the shard: shardkit repair DATASET --source FILE ..."


def read_index(stream: Stream, expected: ShardEntry, where: str) -> NDArray[np.void]:
    """(n,) INDEX_DTYPE rows of the shard that the manifest names; nothing else of it is read.

    Raises CorruptShard, UnsupportedVersion.
    """
    footer = read_footer_of(stream, expected, where)
    index = read_array(stream, footer.index, INDEX_DTYPE, "index", where)
    if len(index) != footer.n_samples:
        raise CorruptShard("the index does not fit the footer", where=where, fix=REBUILD)
    return index


def read_footer_of(stream: Stream, expected: ShardEntry | None, where: str) -> Footer:
    """The footer of a shard; with `expected`, the manifest's entry, it must be the one named there.

    Raises CorruptShard, UnsupportedVersion.
    """
    if stream.size < TAIL_BYTES:
        raise CorruptShard("too short to be a shard", where=where, fix=REBUILD)
    begin = stream.size - 2 * BLOCK - FOOTER_BYTES
    block = bytes(stream.read(begin, FOOTER_BYTES))
    footer = read_footer(block, where)
    if expected is not None and xxh3_hex(block) != expected.footer:
        raise CorruptShard(
            "not the shard that the manifest names: of another dataset, or swapped",
            where=where,
            expected=f"footer {expected.footer}",
            found=f"footer {xxh3_hex(block)}",
            fix=REBUILD,
        )
    if expected is not None and footer.n_samples != expected.n_samples:
        raise CorruptShard(
            "the shard does not have the samples that the manifest says",
            where=where,
            expected=f"{expected.n_samples} samples",
            found=f"{footer.n_samples}",
            fix=REBUILD,
        )
    if footer.n_bytes != stream.size or not 0 <= footer.n_samples <= MAX_SHARD_SAMPLES:
        raise CorruptShard(
            "the footer does not fit the file",
            where=where,
            expected=f"{footer.n_bytes} bytes",
            found=f"{stream.size} bytes",
            fix=REBUILD,
        )
    return footer


def read_place(stream: Stream, place: Extent, what: str, where: str) -> memoryview:
    """The data of a member; raises CorruptShard when it is not what the footer says."""
    if place.offset < BLOCK or place.size < 0 or place.offset + place.size > stream.size:
        raise CorruptShard(f"the {what} lies outside the file", where=where, fix=REBUILD)
    data = stream.read(place.offset, place.size)
    if xxh3_hex(data) != place.xxh3:
        raise CorruptShard(
            f"the {what} does not match its hash",
            where=where,
            expected=f"xxh3 {place.xxh3}",
            found=f"xxh3 {xxh3_hex(data)}",
            fix=REBUILD,
        )
    return data


def read_array(
    stream: Stream, place: Extent, dtype: np.dtype[np.void], what: str, where: str
) -> NDArray[np.void]:
    """(n,) rows of `dtype`: a member that is an array. Raises CorruptShard when it is no such one.

    `what`: the member's name in the message.
    """
    data = read_place(stream, place, what, where)
    header_bytes = 10 + int.from_bytes(data[8:10], "little")
    n, rest = divmod(place.size - header_bytes, dtype.itemsize)
    if rest or bytes(data[:header_bytes]) != npy_header((n,), descr_of(dtype)):
        raise CorruptShard(
            f"the {what} is not the array that the format asks for",
            where=where,
            expected=f"rows of {dtype.descr}",
            fix=REBUILD,
        )
    return np.frombuffer(data[header_bytes:], dtype)
