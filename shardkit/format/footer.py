"""The footer: where the index of a shard is, found from the file's end (docs/format.md, 6.4)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from shardkit.errors import CorruptShard, UnsupportedVersion
from shardkit.format.canonical import canonical_json, xxh3_hex
from shardkit.format.layout import (
    FOOTER_BYTES,
    FORMAT_MAJOR,
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_TOKEN_ROWS,
)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_HASH_KEY = b',"xxh3":"'


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The data of one member: offset and size in bytes, and its xxh3-64 as hex."""

    offset: Count
    size: Count
    xxh3: str


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader needs to know of a shard before anything else."""

    format: str = FORMAT_NAME
    version: str = FORMAT_VERSION
    n_samples: Count
    n_rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ROWS)]
    """Rows of every tokens array; the first two are input_ids and labels."""
    n_bytes: Count
    """Bytes of the uncompressed tar, end-of-file blocks included."""
    manifest: Extent
    index: Extent
    segments: Extent | None

    def to_block(self) -> bytes:
        """The footer as its fixed-size block, its own hash included."""
        body = canonical_json(self)[:-1]
        text = body + _HASH_KEY + xxh3_hex(body).encode() + b'"}'
        if len(text) >= FOOTER_BYTES:
            raise OverflowError(f"a footer of {len(text)} bytes")
        return text + b" " * (FOOTER_BYTES - len(text) - 1) + b"\n"


_DECODER = msgspec.json.Decoder(Footer)


def read_footer(block: bytes, where: str) -> Footer:
    """The footer in `block`; raises CorruptShard or UnsupportedVersion."""
    body, found, rest = block.rpartition(_HASH_KEY)
    if not found or rest[16:].rstrip(b" \n") != b'"}' or len(block) != FOOTER_BYTES:
        raise CorruptShard(
            "there is no shardkit footer at the end of the file",
            where=where,
            expected='"xxh3" at the end of the footer block',
            found=repr(block[:24]),
            fix="The file is cut short or is no shard: rebuild it with `shardkit repair`.",
        )
    if rest[:16] != xxh3_hex(body).encode():
        raise CorruptShard(
            "the footer does not match its own hash",
            where=where,
            expected=f"xxh3 {rest[:16].decode('ascii', 'replace')}",
            found=f"xxh3 {xxh3_hex(body)}",
            fix="Rebuild the shard with `shardkit repair`.",
        )
    try:
        footer = _DECODER.decode(body + b"}")
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        check_version(_fields_of(body + b"}"), where)
        raise CorruptShard(
            f"not a footer as the format asks for: {err}",
            where=where,
            fix="Rebuild the shard with `shardkit repair`.",
        ) from err
    check_version({"format": footer.format, "version": footer.version}, where)
    return footer


def _fields_of(body: bytes) -> dict[str, Any]:
    """The fields of a footer that cannot be read; none when it is no JSON object."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def check_version(fields: dict[str, Any], where: str) -> None:
    """Raise UnsupportedVersion for another format, or another major version of this one."""
    name, version = fields.get("format"), str(fields.get("version"))
    if name == FORMAT_NAME and version.split(".")[0] == str(FORMAT_MAJOR):
        return
    raise UnsupportedVersion(
        "written in a format that this version of shardkit does not read",
        where=where,
        expected=f"{FORMAT_NAME} {FORMAT_MAJOR}.x",
        found=f"{name} {version}",
        fix="Install the shardkit that wrote it, or pack the data again with this one.",
    )
