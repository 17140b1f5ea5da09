"""What must be known of a plan to continue and to commit it: a small file in the build folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from shardkit.format.atomic import appear
from shardkit.format.manifest import fingerprint_of
from shardkit.sources import SourceScan


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """.building/plan.json."""

    identity: dict[str, Any]
    compression: str
    max_rejects: float | None
    rows_per_part: int
    scans: list[SourceScan]
    stamps: list[list[int]]
    """Size and time of change of each input: equal ones are not scanned again."""

    @property
    def fingerprint(self) -> str:
        """Of the identity."""
        return fingerprint_of(self.identity)

    @property
    def n_rows(self) -> int:
        """Rows of all inputs."""
        return sum(scan.n_rows for scan in self.scans)

    @property
    def n_parts(self) -> int:
        """Parts that the rows are cut into."""
        return -(-self.n_rows // self.rows_per_part)

    @property
    def is_packed(self) -> bool:
        """Whether rows of the result hold several samples."""
        return bool(self.identity["recipe"]["packing"] != "none")

    def part_bounds(self, part: int) -> tuple[int, int]:
        """First and last + 1 position of a part in the planned row order."""
        first = part * self.rows_per_part
        return first, min(first + self.rows_per_part, self.n_rows)


def save_outline(outline: Outline, tokenizer_files: dict[str, bytes], folder: Path) -> None:
    """Write plan.json, and beside it the tokenizer that the commit will copy."""
    place = folder / "tokenizer"
    place.mkdir(exist_ok=True)
    for name, data in tokenizer_files.items():
        with appear(place / name) as file:
            file.write(data)
    with appear(folder / "plan.json") as file:
        file.write(msgspec.json.encode(outline, order="sorted"))


def load_outline(folder: Path) -> Outline | None:
    """The saved outline, when there is a readable one."""
    try:
        return msgspec.json.decode((folder / "plan.json").read_bytes(), type=Outline)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files that `save_outline` wrote."""
    return {path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())}
