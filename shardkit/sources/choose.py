"""Which format the input files are of, as their first rows show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardkit.conversation import Conversation, EmbeddedImage, Reject
from shardkit.errors import BadInput, UsageError
from shardkit.format.recipe import SFT
from shardkit.sources.record import ReadOptions
from shardkit.sources.rows import read_rows
from shardkit.sources.scan import SourceScan
from shardkit.sources.source_format import SourceFormat, detect, source_named

N_LOOKED_AT = 64
"""Rows of each file that are looked at, from its first one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the first rows of all files say."""

    source: SourceFormat
    why: str
    names_images: str | None = None
    """The first row that names a picture file, in words."""
    has_bytes: bool = False
    """Whether a row brings the bytes of a picture along."""
    is_packed: bool = False
    """Whether the first row is a pack already."""


def choose(scans: Sequence[SourceScan], name: str, options: ReadOptions) -> Choice:
    """The format of that name, or the one that the rows are of, and why.

    Rows decide with `auto`, and for every task but `sft`. Raises UsageError when there is no such
    format or the files are of several, BadInput when there is no row or no format fits.
    """
    bad: list[Reject] = []
    firsts = {scan.path: _first_records(scan, bad) for scan in scans}
    if name == "auto" or options.task != SFT:
        source, why = _detected(firsts, options, bad)
    else:
        source, why = source_named(name), "as asked"
    records = [record for found in firsts.values() for record in found]
    found = [(record, source.read(record, options)) for record in records]
    images = [
        image
        for _, one in found
        if isinstance(one, Conversation) and one.images
        for image in one.images
    ]
    files = [image for image in images if not isinstance(image, EmbeddedImage)]
    return Choice(
        source,
        why,
        names_images=f"a row names {files[0][:80]!r}" if files else None,
        has_bytes=len(files) < len(images),
        is_packed=bool(records) and source.is_packed(records[0]),
    )


def _first_records(scan: SourceScan, bad: list[Reject]) -> list[object]:
    """The first records of a file; what is none goes to `bad`."""
    rows = read_rows(scan, 0, min(scan.n_rows, N_LOOKED_AT))
    bad += [row for row in rows if isinstance(row, Reject)]
    return [row for row in rows if not isinstance(row, Reject)]


def _detected(
    firsts: dict[str, list[object]], options: ReadOptions, bad: Sequence[Reject]
) -> tuple[SourceFormat, str]:
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for path, records in firsts.items():
        if records:
            name, why = detect(records, path, options)
            found.setdefault(name, path)
            reasons.setdefault(name, why)
    if not found:
        raise BadInput(
            "there is no row to pack",
            where=", ".join(list(firsts)[:3]),
            found=f"{bad[0].reason}: {bad[0].detail}" if bad else None,
            fix="Check that the files are the right ones.",
        )
    if len(found) > 1:
        kinds = ", ".join(f"{path} is {name}" for name, path in found.items())
        raise UsageError(
            f"the inputs are of different formats: {kinds}",
            fix="Pack them one by one and merge them, or name one format with --format.",
        )
    name = next(iter(found))
    return source_named(name), reasons[name]
