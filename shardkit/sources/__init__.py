"""Raw formats live here: files to rows, rows to conversations."""

from __future__ import annotations

from collections.abc import Sequence

from shardkit.errors import BadInput
from shardkit.sources.fields import kind_of
from shardkit.sources.formats import SOURCES, ReadOptions, SourceFormat
from shardkit.sources.inputs import expand_inputs, names_of
from shardkit.sources.rows import read_plain, read_rows, read_some
from shardkit.sources.scan import SourceScan, scan

__all__ = [
    "SOURCES",
    "ReadOptions",
    "SourceFormat",
    "SourceScan",
    "detect",
    "expand_inputs",
    "names_of",
    "read_plain",
    "read_rows",
    "read_some",
    "scan",
]


def detect(records: Sequence[object], where: str) -> tuple[str, str]:
    """The format that most of these records look like, and why, in words.

    A record with images makes a set of `conversations` LLaVA, also when the first has none.
    Raises BadInput, naming what was seen, when no format fits.
    """
    for name, source in SOURCES.items():
        n_fitting = sum(source.looks_like(record) for record in records)
        n_needed = 1 if name == "llava" else len(records) / 2
        if n_fitting and n_fitting >= n_needed:
            return name, f"{n_fitting} of the first {len(records)} rows hold {source.fields}"
    seen = sorted({_shape(record) for record in records})
    formats = "; ".join(f"{name}: {source.fields}" for name, source in SOURCES.items())
    raise BadInput(
        "no source format fits these rows",
        where=where,
        expected=formats,
        found=" or ".join(seen[:3]) or "no rows at all",
        fix="Rename the fields, or name the format with --format.",
    )


def _shape(record: object) -> str:
    if isinstance(record, dict):
        return "an object with " + ", ".join(map(repr, list(record)[:8]))
    return kind_of(record)
