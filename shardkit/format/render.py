"""Samples as the bytes of a tar, many at once (docs/format.md, sections 5 and 6)."""

from __future__ import annotations

from functools import cache, lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.format.canonical import canonical_json
from shardkit.format.index import index_of
from shardkit.format.layout import BLOCK, NPY_HEADER, TOKENS_START, key_of, padded
from shardkit.format.recipe import TOKEN_ROWS, RowRules
from shardkit.format.samples import SEGMENT_DTYPE, Samples
from shardkit.format.tar import headers, member

_PAD = BLOCK - 1
TOKEN_BYTES = 4 * len(TOKEN_ROWS)
"""Bytes of a token in all token rows."""


def npy_header(shape: tuple[int, ...], descr: str = "'<i4'") -> bytes:
    """The .npy version 1.0 header of a C-ordered array, padded to a multiple of 64 bytes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = -(-(10 + len(text) + 1) // 64) * 64
    line = text.ljust(length - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


@cache
def descr_of(dtype: np.dtype[np.void]) -> str:
    """A structured dtype as a .npy header has it."""
    return repr(dtype.descr)


@lru_cache(maxsize=1 << 14)
def _tokens_header(n_rows: int, length: int) -> bytes:
    return npy_header((n_rows, length))


def npy_bytes(array: NDArray[np.void]) -> bytes:
    """A structured array as the bytes of an .npy file."""
    return npy_header(array.shape, descr_of(array.dtype)) + array.tobytes()


def sample_meta(samples: Samples, i: int) -> bytes:
    """The JSON member of sample i: its records' ids, and what is known of each image."""
    images = tuple(
        SampleImage(image.name, image.width, image.height, image.tokens, image.grid, image.spans)
        for image in samples.images_of(i)
    )
    return canonical_json(SampleMeta(samples.row_ids[i] if samples.row_ids else (), images))


def sample_spans(samples: Samples) -> NDArray[np.int64]:
    """(n,) bytes that each sample takes in a shard, headers and padding included.

    Rounding up to blocks is adding 511 and clearing the last 9 bits: 144 and 513 → 512 and 1,024.
    """
    spans = BLOCK + ((NPY_HEADER + TOKEN_BYTES * samples.lengths + _PAD) & ~np.int64(_PAD))
    for i, images in enumerate(samples.images):
        if images:
            sizes = [len(image.data) for image in images] + [len(sample_meta(samples, i))]
            spans[i] += sum(BLOCK + padded(size) for size in sizes)
    return spans


def render(
    samples: Samples, rules: RowRules, first_row: int
) -> tuple[NDArray[np.uint8], NDArray[np.void]]:
    """The samples as tar bytes, uint8, and their INDEX_DTYPE rows, whose offsets count from byte 0.

    `first_row` is the row in the shard of sample 0.
    """
    spans = sample_spans(samples)
    ends = np.cumsum(spans)
    local = ends - spans
    buffer = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    _place_headers(buffer, samples, first_row, local)
    _place_tokens(buffer, samples, local)
    for i, images in enumerate(samples.images):
        if images:
            _place_images(buffer, samples, i, first_row, int(ends[i]))
    return buffer, index_of(samples, rules, spans, buffer)


def _place_headers(
    buffer: NDArray[np.uint8], samples: Samples, first_row: int, local: NDArray[np.int64]
) -> None:
    lengths, which = np.unique(samples.lengths, return_inverse=True)
    npy = np.frombuffer(
        b"".join(_tokens_header(len(TOKEN_ROWS), length) for length in lengths.tolist()), np.uint8
    ).reshape(-1, NPY_HEADER)
    names = _token_names(first_row, len(samples))
    blocks = buffer.reshape(-1, BLOCK)
    at = local // BLOCK
    blocks[at] = headers(names, NPY_HEADER + TOKEN_BYTES * samples.lengths)
    blocks[at + 1, :NPY_HEADER] = npy[which]


def _token_names(first_row: int, n: int) -> NDArray[np.bytes_]:
    """(n,) the names of the tokens members of n rows.

    Digits of row 42: 42 // [10000000, ..., 10, 1] % 10 = [0, ..., 4, 2], added to "00000000".
    """
    letters = np.tile(np.frombuffer(f"{key_of(0)}.tokens.npy".encode(), np.uint8), (n, 1))
    rows = np.arange(first_row, first_row + n)
    letters[:, :8] += (rows[:, None] // 10 ** np.arange(7, -1, -1) % 10).astype(np.uint8)
    return letters.view("S19").ravel()


def _place_tokens(buffer: NDArray[np.uint8], samples: Samples, local: NDArray[np.int64]) -> None:
    # 2 and 1 tokens, spans from bytes 0 and 1,024: ids go to words [160, 161, 416], and the labels
    # as many words behind them as the row has tokens, to [162, 163, 417]
    words = buffer.view(np.int32)
    lengths = samples.lengths
    where = np.repeat((local + TOKENS_START) // 4 - samples.starts[:-1], lengths)
    where += np.arange(len(where)) + samples.starts[0]
    row = np.repeat(lengths, lengths)
    part = slice(int(samples.starts[0]), int(samples.starts[-1]))
    words[where] = samples.ids[part]
    words[where + row] = samples.labels[part]


def _place_images(
    buffer: NDArray[np.uint8], samples: Samples, i: int, first_row: int, end: int
) -> None:
    key = key_of(first_row + i)
    parts = [
        member(f"{key}.{k}.{image.extension}", image.data)
        for k, image in enumerate(samples.images[i])
    ]
    parts.append(member(f"{key}.json", sample_meta(samples, i)))
    data = np.frombuffer(b"".join(parts), np.uint8)
    buffer[end - len(data) : end] = data


def empty_segments() -> NDArray[np.void]:
    """No rows of SEGMENT_DTYPE."""
    return np.zeros(0, SEGMENT_DTYPE)


class SampleImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image of a sample as its JSON member describes it; see StoredImage."""

    name: str
    width: int
    height: int
    tokens: int | None = None
    grid: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


class SampleMeta(msgspec.Struct, frozen=True):
    """The JSON member of a sample: the records' own ids, and its images in reading order."""

    ids: tuple[str | None, ...]
    images: tuple[SampleImage, ...]
