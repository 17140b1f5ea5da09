"""The ways in which data is read, as digests that are compared; and the judgement of a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from campaign.verdict import Outcome, Verdict, worst
from shardkit import ShardLoader, ShardTable, verify
from shardkit.errors import ShardkitError

if TYPE_CHECKING:
    from campaign.room import Packed

Digests = list[str]
"""One for each batch or sample: what a reader handed out."""


def _digest(handed_out: dict[str, Any]) -> str:
    """Everything in a batch or sample: names, shapes, tokens, encoded pictures, keys."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(handed_out):
        value = handed_out[name]
        found.update(name.encode())
        if isinstance(value, torch.Tensor):
            found.update(repr(tuple(value.shape)).encode())
            found.update(value.contiguous().numpy().tobytes())
            continue
        for entry in value if isinstance(value, list) else [value]:
            found.update(bytes(entry) if isinstance(entry, bytes | memoryview) else b"")
            found.update(b"" if isinstance(entry, bytes | memoryview) else repr(entry).encode())
    return found.hexdigest()


def read_loader(path: Path | str, **options: Any) -> Digests:
    """One epoch through a ShardLoader with these options."""
    loader = ShardLoader(
        path, 5, rank=0, world_size=1, drop_last=False, sample_keys=True, **options
    )
    return [_digest(batch) for batch in loader]


READERS: dict[str, Callable[[Path], Digests]] = {
    "loader": lambda path: read_loader(path, shuffle=False, prefetch=0),
    "loader with a thread": lambda path: read_loader(path, shuffle=False, prefetch=2),
    "shuffled loader": lambda path: read_loader(path, seed=1, window=8, prefetch=0),
    "table": lambda path: [_digest(sample) for sample in ShardTable(path)],
}
"""By name: every sample that is at a path."""


def judge(packed: Packed, copy: Path, reader: str, names: list[str], fault: str) -> Verdict:
    """Read a damaged copy, and verify it; the worse of both.

    `names`: of the damaged files, of which errors must name one. A copy that is no other than the
    whole one is only read.
    """
    read = judge_call(
        lambda: READERS[reader](copy), packed.golden[reader], names, f"{fault}, read by {reader}"
    )
    is_changed = any(_is_changed(packed, copy, name) for name in names)
    if not is_changed or read.is_bad:
        return read
    verified = judge_call(lambda: _verified(copy, names), ["found"], names, f"{fault}, verified")
    if verified.outcome == Outcome.REFUSED:
        return read
    return worst(read, verified)


def judge_call(
    call: Callable[[], Digests], golden: Digests, names: list[str], fault: str
) -> Verdict:
    """What a call does: gives the golden result, refuses by name, or worse."""
    try:
        found = call()
    except ShardkitError as err:
        is_named = any(Path(name).name in str(err) for name in names)
        outcome = Outcome.REFUSED if is_named else Outcome.UNNAMED
        return Verdict(outcome, fault, f"{type(err).__name__}: {err}")
    except Exception as err:
        return Verdict(Outcome.FOREIGN, fault, f"{type(err).__name__}: {err}")
    if found == golden:
        return Verdict(Outcome.SAME, fault)
    return Verdict(Outcome.SILENT, fault, f"{_difference(found, golden)}")


def _verified(copy: Path, names: list[str]) -> Digests:
    """`found` when verify has a problem with one of the files; else what it said instead."""
    problems = verify(copy).problems
    said = [f"{finding.place()} {finding.message}" for finding in problems]
    if any(Path(name).name in line for name in names for line in said):
        return ["found"]
    return ["verify calls it good"] if not said else ["found"]


def _is_changed(packed: Packed, copy: Path, name: str) -> bool:
    path = copy / name
    if path.is_symlink() or not path.is_file():
        return True
    return path.read_bytes() != packed.data.get(name)


def _difference(found: Digests, golden: Digests) -> str:
    if found[:1] == ["verify calls it good"]:
        return found[0]
    n = sum(a != b for a, b in zip(found, golden, strict=False))
    return f"{n} of {len(golden)} batches or samples differ, {len(found)} came"
