"""Names, numbers and limits of the format (docs/format.md, sections 4 to 6 and 12)."""

from __future__ import annotations

import numpy as np

FORMAT_NAME = "shardkit"
FORMAT_MAJOR = 1
FORMAT_MINOR = 0
FORMAT_VERSION = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
TOKENIZER_FOLDER = "tokenizer"
HUB_FILES = ("README.md", ".gitattributes")
"""Files of a dataset's repository on the hub, which no manifest names and nothing removes."""

SHARD_MANIFEST_MEMBER = "__shardkit__/manifest"
INDEX_MEMBER = "__shardkit__/index"
SEGMENTS_MEMBER = "__shardkit__/segments"
FOOTER_MEMBER = "__shardkit__/footer"

BLOCK = 512
"""A tar block, bytes: headers, and what member data is padded to."""
NPY_HEADER = 128
"""Bytes of the .npy header of every tokens member."""
TOKENS_START = BLOCK + NPY_HEADER
"""From the start of a sample's span to its first token, bytes."""
FOOTER_BYTES = 512
TAIL_BYTES = BLOCK + FOOTER_BYTES + 2 * BLOCK
"""The end of every shard: footer header, footer, two zero blocks."""
MAX_MEMBER_BYTES = 8**11 - 1
"""The largest size that a ustar header can hold (8 GiB - 1)."""
MAX_SAMPLE_TOKENS = (MAX_MEMBER_BYTES - NPY_HEADER) // (4 * 2)
"""Tokens of a sample, so that its tokens member fits a ustar header (2^30 - 17)."""
MAX_TOKEN_ROWS = 2**16 - 1
MAX_SHARD_SAMPLES = 10**8

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("span", "<u8"),
        ("record", "<u8"),
        ("hash", "<u8"),
        ("cost2", "<u8"),
        ("n_tokens", "<u4"),
        ("length", "<u4"),
        ("n_supervised", "<u4"),
        ("n_images", "<u4"),
        ("n_image_tokens", "<u4"),
        ("n_cut", "<u4"),
        ("source", "<u4"),
        ("piece", "<u4"),
        ("flags", "<u4"),
        ("n_first", "<u4"),
    ]
)
"""One row per sample (docs/format.md, section 6.2)."""
FLAG_DESIRABLE = 1
"""Bit of `flags`: the record's own label is true (recipes whose task is `kto`)."""


def key_of(row: int) -> str:
    """The key of the sample in row `row` of a shard: eight digits."""
    return f"{row:08d}"


def shard_name(number: int, suffix: str = ".tar") -> str:
    """The file name of shard `number` of a dataset."""
    return f"shard-{number:05d}{suffix}"


def padded(n_bytes: int) -> int:
    """`n_bytes` rounded up to whole tar blocks."""
    return -(-n_bytes // BLOCK) * BLOCK
