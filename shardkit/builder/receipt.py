"""What a part leaves behind: its shards, its counts, and the receipt that vouches for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from shardkit.builder.sealed import seal, unseal
from shardkit.format.atomic import appear
from shardkit.format.canonical import sha256_file
from shardkit.format.manifest import ShardEntry
from shardkit.tokens import REFERENCE

_MARKER = "committing"
N_EXAMPLES = 5
"""Rows that a check names, at most."""


class SourceCount(msgspec.Struct):
    """What became of the rows of one source, in one part."""

    n_rows: int = 0
    n_kept: int = 0
    rejected: dict[str, int] = {}
    n_truncated: int = 0
    n_cut_tokens: int = 0
    unread: dict[str, int] = {}
    """How often a key of a record was read by nobody, by the key's path."""


class Check(msgspec.Struct):
    """Rows worth a look: how many, and the first ones as (source, row)."""

    n: int = 0
    examples: list[tuple[int, int]] = []
    n_tokens: int = 0
    """Tokens that these rows lost, together; only `truncated` counts them."""
    most_tokens: int = 0
    """Tokens that one of these rows lost, at most; only `truncated` counts them."""

    def add(self, other: Check) -> None:
        """Count rows of a later part too."""
        self.n += other.n
        self.examples += other.examples[: N_EXAMPLES - len(self.examples)]
        self.n_tokens += other.n_tokens
        self.most_tokens = max(self.most_tokens, other.most_tokens)


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a part made. It is written last, so it vouches for the part's files."""

    part: int
    fingerprint: str
    """The `key` of the plan that the part is of."""
    shards: list[ShardEntry]
    sources: dict[int, SourceCount]
    checks: dict[str, Check]
    """Checks by name: `truncated`, `empty_answer`, and the reasons of rejected rows."""
    notes: dict[str, int]
    engine: str
    difference: str | None = None
    """Why the fast tokenizer engine was given up, if that was known by then."""
    n_rows: int
    n_samples: int
    """Samples of the rows that were kept; a row that was split has several."""
    n_placed: int
    """Distinct samples found in the shards: must equal n_samples."""
    files: dict[str, str]
    """sha256 of the files beside the shards."""

    @property
    def n_tokens(self) -> int:
        """Tokens in its shards."""
        return sum(entry.n_tokens for entry in self.shards)


def part_folder(folder: Path, part: int) -> Path:
    """Where a part's shards lie until the commit."""
    return folder / f"part-{part:06d}"


def receipt_path(folder: Path, part: int) -> Path:
    """Where a part's receipt lies."""
    return folder / f"part-{part:06d}.json"


def mark_committing(folder: Path, fingerprint: str) -> None:
    """Note that a commit of this plan begins to move the shards of its parts."""
    with appear(folder / _MARKER) as file:
        file.write(fingerprint.encode())


def is_committing(folder: Path, fingerprint: str) -> bool:
    """Whether a commit of this plan was begun: then its shards may have moved already."""
    try:
        return (folder / _MARKER).read_bytes() == fingerprint.encode()
    except FileNotFoundError:
        return False


def save_receipt(receipt: Receipt, folder: Path) -> None:
    """Write the receipt of a part, which makes it done."""
    seal(receipt, receipt_path(folder, receipt.part))


def done_receipt(fingerprint: str, folder: Path, part: int) -> Receipt | None:
    """The receipt of a part that is done and whose files are what it says; None when it is not.

    What was damaged since then is built again; only where a commit was begun, which moves shards
    away, their absence is no reason.
    """
    receipt = unseal(receipt_path(folder, part), Receipt)
    if receipt is None or receipt.fingerprint != fingerprint:
        return None
    is_moving = is_committing(folder, fingerprint)
    place = part_folder(folder, part)
    files = receipt.files | {entry.name: entry.sha256 for entry in receipt.shards}
    for name, sha256 in files.items():
        path = place / name
        is_moved = is_moving and name not in receipt.files and not path.exists()
        if not is_moved and not (path.is_file() and sha256_file(path) == sha256):
            return None
    return receipt


def untrusted(receipts: Iterable[Receipt]) -> list[int]:
    """The parts whose ids are a fast engine's, where any part's build found that engine wrong.

    A difference is found in a sample of the texts: what was made before may hold others.
    """
    receipts = list(receipts)
    if not any(receipt.difference for receipt in receipts):
        return []
    return [receipt.part for receipt in receipts if receipt.engine != REFERENCE]
