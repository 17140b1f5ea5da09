"""manifest.json: what a dataset is, where its rows went, and which shards hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.errors import BadManifest
from shardkit.format.canonical import canonical_json, sha256_hex, sha256_of
from shardkit.format.footer import check_version
from shardkit.format.identity import check_identity
from shardkit.format.layout import FORMAT_NAME, FORMAT_VERSION
from shardkit.format.recipe import RowRules, pad_token_id_of

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}")
_HASH_LINE = b',\n"sha256": "'
_END = b'"\n}\n'
_FIX = "The manifest is damaged or was edited: copy it again, or pack the dataset again."

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An entry of a list of the manifest, of which there may be a hundred thousand.

    Entries refer to nothing that could refer back, so they do not count as reasons to search the
    whole process for cycles: beside an imported torch that takes longer than to read them.
    """


class ShardEntry(Entry, frozen=True, kw_only=True, gc=False):
    """One shard: its counts, and what its file must be."""

    name: str
    n_samples: Count
    n_tokens: Count
    n_supervised: Count
    n_images: Count
    length: Count
    """Places that all samples take in the model: tokens, with images at their full size."""
    longest: Count
    """Places that the longest sample takes in the model."""
    n_bytes: Count
    """Bytes of the file as it is on disk."""
    sha256: str
    """The sha256 of the file as it is on disk, 64 hex digits."""
    footer: str
    """xxh3-64 of the footer block, 16 hex digits; the block holds the hashes of the members."""


class SourceEntry(Entry, frozen=True, kw_only=True, gc=False):
    """One input file and what became of its rows."""

    name: str
    """The file's path relative to the folder that all inputs share."""
    sha256: str
    n_bytes: Count
    n_rows: Count
    n_kept: Count
    rejected: dict[str, Count] = {}
    """Rows by reason; n_rows = n_kept + sum of these."""
    n_truncated: Count = 0
    n_cut_tokens: Count = 0


class FileEntry(Entry, frozen=True, kw_only=True, gc=False):
    """One other file of the dataset."""

    name: str
    sha256: str
    n_bytes: Count


class PartEntry(Entry, frozen=True, kw_only=True, gc=False):
    """One part: which rows (positions in the planned row order) made which shards."""

    first_row: Count
    n_rows: Count
    first_shard: Count
    n_shards: Count


class BuildEntry(Entry, frozen=True, kw_only=True, gc=False):
    """One of several packs that were joined, and how many `shards` and `parts` are its own."""

    n_shards: Count
    n_parts: Count


class _Held(msgspec.Struct, array_like=True, gc=False):
    """What the content hash knows of a shard."""

    n_samples: int
    footer: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a dataset says of itself (docs/format.md, section 10)."""

    fingerprint: str
    content: str
    identity: dict[str, Any]
    writer: str
    engine: str
    compression: str = "none"
    sources: list[SourceEntry]
    shards: list[ShardEntry]
    parts: list[PartEntry] = []
    builds: list[BuildEntry] = []
    """The packs of a dataset that was appended to or merged, in order; empty: one made it all."""
    tokenizer_files: list[FileEntry] = []
    rejects: FileEntry | None = None
    checks: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    """Fields of a later minor version, kept as they are."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What turns a row into tokens: equal in datasets that may be merged or mixed."""
        return dict(self.identity["recipe"])

    @property
    def is_packed(self) -> bool:
        """Whether several samples share a row."""
        return RowRules.of(self.identity["recipe"]).is_packed

    @property
    def image_recipe(self) -> dict[str, Any] | None:
        """How images were packed; None when the dataset has none."""
        images: dict[str, Any] | None = self.recipe.get("images")
        return images

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding id, else its EOS id, else 0."""
        return pad_token_id_of(self.recipe)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_shards,) samples of each shard."""
        return np.fromiter((s.n_samples for s in self.shards), np.int64, len(self.shards))

    @property
    def n_samples(self) -> int:
        """Samples of all shards (packs, when packed)."""
        return sum(s.n_samples for s in self.shards)

    @property
    def n_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(s.n_tokens for s in self.shards)

    @property
    def length(self) -> int:
        """Places in the model that all samples take: tokens, with images at their full size."""
        return sum(s.length for s in self.shards)

    @property
    def n_supervised(self) -> int:
        """Tokens with a label, of all shards."""
        return sum(s.n_supervised for s in self.shards)

    @property
    def n_images(self) -> int:
        """Images of all shards."""
        return sum(s.n_images for s in self.shards)

    @property
    def source_names(self) -> list[str]:
        """Names of the input files, build after build; an index counts those of its build."""
        return [s.name for s in self.sources]

    def to_bytes(self) -> bytes:
        """The file: canonical JSON, one line for each field and for each entry of a list.

        The last line is the sha256 of all bytes before it.
        """
        fields: dict[str, object] = {"format": FORMAT_NAME, "version": FORMAT_VERSION}
        fields |= {name: getattr(self, name) for name in self.__struct_fields__ if name != "extra"}
        fields |= self.extra
        lines = (canonical_json(name) + b": " + _lines(value) for name, value in fields.items())
        body = b"{\n" + b",\n".join(lines)
        return body + _HASH_LINE + sha256_hex(body).encode() + _END

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse and check; raises BadManifest, UnsupportedVersion. `where` goes into errors."""
        try:
            raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            version: dict[str, object] = {
                k: msgspec.json.decode(raw[k]) for k in ("format", "version") if k in raw
            }
            check_version(version, where)
            _check_hash(data, raw, where)
            manifest = msgspec.json.decode(data, type=cls)
            known = {*cls.__struct_fields__, "format", "version", "sha256"} - {"extra"}
            extra = {k: msgspec.json.decode(v) for k, v in raw.items() if k not in known}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise BadManifest(str(err), where=where, fix=_FIX) from err
        manifest = msgspec.structs.replace(manifest, extra=extra)
        _check(manifest, where)
        return manifest


def fingerprint_of(identity: dict[str, Any]) -> str:
    """The sha256 of an identity's canonical JSON (docs/format.md, section 11.2)."""
    return sha256_of(identity)


def content_of(shards: Iterable[ShardEntry]) -> str:
    """The sha256 of what the shards hold: sample counts and footers, in order."""
    return sha256_of([_Held(s.n_samples, s.footer) for s in shards])


def fingerprint_of_mixture(manifests: Sequence[Manifest], weights: Sequence[int], end: str) -> str:
    """The sha256 of what made the samples of a mixture: members, weights, end of an epoch."""
    return sha256_of([[manifest.fingerprint for manifest in manifests], weights, end])


def content_of_mixture(manifests: Sequence[Manifest]) -> str:
    """The sha256 of what the shards of all members of a mixture hold."""
    return sha256_of([manifest.content for manifest in manifests])


def _lines(value: object) -> bytes:
    if not isinstance(value, list) or not value:
        return canonical_json(value)
    return b"[\n" + b",\n".join(canonical_json(entry) for entry in value) + b"\n]"


def _check_hash(data: bytes, raw: Mapping[str, msgspec.Raw], where: str) -> None:
    """Raise BadManifest unless the hash in the last line is that of the bytes before it."""
    if "sha256" not in raw:
        raise BadManifest(
            "written before format 1.0 was fixed",
            where=where,
            expected="a last field sha256, the hash of the manifest",
            found="none",
            fix="Pack the data again with this version of shardkit.",
        )
    body, _, end = data.rpartition(_HASH_LINE)
    found = sha256_hex(body).encode()
    if end != found + _END:
        raise BadManifest(
            "the manifest does not match its own hash",
            where=f"{where}: $.sha256",
            expected=end[:64].decode("ascii", "replace"),
            found=found.decode(),
            fix=_FIX,
        )


def _check(manifest: Manifest, where: str) -> None:
    """What readers rely on between the fields; what else must hold is asked in relations.py."""
    check_identity(manifest.identity, where)
    if fingerprint_of(manifest.identity) != manifest.fingerprint:
        raise BadManifest(
            "the identity does not match the fingerprint",
            where=f"{where}: $.fingerprint",
            expected=fingerprint_of(manifest.identity),
            found=manifest.fingerprint,
            fix=_FIX,
        )
    content = content_of(manifest.shards)
    if content != manifest.content:
        raise BadManifest(
            "the shard list does not match the content hash",
            where=f"{where}: $.content",
            expected=content,
            found=manifest.content,
            fix=_FIX,
        )
    names = [s.name for s in manifest.shards]
    _check_names(names, f"{where}: $.shards")
    _check_names([f.name for f in manifest.tokenizer_files], f"{where}: $.tokenizer_files")
    _check_names([manifest.rejects.name] if manifest.rejects else [], f"{where}: $.rejects")
    _check_builds(manifest, where)
    if len(set(names)) != len(names):
        raise BadManifest("two shards have one name", where=f"{where}: $.shards", fix=_FIX)


def _check_builds(manifest: Manifest, where: str) -> None:
    """Raise BadManifest unless the builds share out all sources, shards and parts."""
    n_sources = _sources_of_builds(manifest.identity.get("builds", []))
    lists = (manifest.sources, manifest.shards, manifest.parts)
    expected = tuple(len(entries) if manifest.builds else 0 for entries in lists)
    found = (
        sum(n_sources or []),
        sum(build.n_shards for build in manifest.builds),
        sum(build.n_parts for build in manifest.builds),
    )
    is_negative = any(min(build.n_shards, build.n_parts) < 0 for build in manifest.builds)
    if n_sources is None or len(n_sources) != len(manifest.builds) or is_negative:
        raise BadManifest("builds and identity differ", where=f"{where}: $.builds", fix=_FIX)
    if found != expected:
        raise BadManifest(
            "the builds do not share out all sources, shards and parts",
            where=f"{where}: $.builds",
            expected=str(expected),
            found=str(found),
            fix=_FIX,
        )


def _sources_of_builds(builds: object) -> list[int] | None:
    """How many sources each build of an identity has; None when it is not as it should be."""
    if not isinstance(builds, list):
        return None
    lists = [build.get("sources") if isinstance(build, dict) else None for build in builds]
    return [len(s) for s in lists if isinstance(s, list)] if None not in lists else None


def _check_names(names: list[str], where: str) -> None:
    if all(map(_SAFE_NAME.fullmatch, names)):
        return
    i, found = next((i, name) for i, name in enumerate(names) if not _SAFE_NAME.fullmatch(name))
    raise BadManifest(
        "a file name that may leave the dataset",
        where=f"{where}[{i}].name",
        expected="letters, digits, '.', '_' and '-'",
        found=repr(found),
        fix="Do not use this dataset: its manifest was tampered with.",
    )
