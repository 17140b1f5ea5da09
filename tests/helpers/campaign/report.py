"""The table of counts, and how each fault is done again."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from campaign.supervise import Tally
from campaign.verdict import BAD, Outcome

SHOWN = 20
"""Reproducers of a kind, at most."""


def table(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """One line for each kind, and their sum."""
    names = ["kind", "tried", *Outcome, "seconds"]
    rows = [names]
    total = Tally()
    for kind, tally in tallies.items():
        if tally.skipped is not None:
            rows.append([kind, f"skipped: {tally.skipped}"])
            continue
        rows.append(_row(kind, tally))
        total.counts += tally.counts
        total.seconds += tally.seconds
    rows.append(_row("all", total))
    widths = [max(len(row[i]) for row in rows if len(row) == len(names)) for i in range(len(names))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        yield "  ".join(cells).rstrip()


def reproducers(tallies: Mapping[str, Tally], seed: int) -> Iterator[str]:
    """The command that does a fault again, what it was and what was seen."""
    for kind, tally in tallies.items():
        found = sorted(tally.faults.items(), key=lambda item: (not item[1].is_bad, item[0]))
        for number, verdict in found[:SHOWN]:
            yield f"{verdict.outcome}: make campaign SEED={seed} ONLY={kind} CASE={number}"
            yield f"    {verdict.fault[:200]}"
            yield f"    {' '.join(verdict.seen.split())[:240]}"
        if len(found) > SHOWN:
            yield f"    ... and {len(found) - SHOWN} more of {kind}"


def extra_counts(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """What was done beside the cases: `kills of pack: 41, kills of append: 38, ... (305)`."""
    for kind, tally in tallies.items():
        if tally.more:
            counts = ", ".join(f"{name} {n:,}" for name, n in sorted(tally.more.items()))
            yield f"{kind}: {counts}; together {tally.more.total():,}"


def as_json(tallies: Mapping[str, Tally], settings: Mapping[str, Any]) -> bytes:
    """All counts, and every fault with the arguments of `python -m campaign` that do it again."""
    seed = str(settings["seed"])
    kinds = {
        kind: {
            "tried": tally.counts.total(),
            "seconds": round(tally.seconds, 1),
            "skipped": tally.skipped,
            "outcomes": {outcome: tally.counts[outcome] for outcome in Outcome},
            "counts": dict(sorted(tally.more.items())),
            "faults": [
                {
                    "case": number,
                    "outcome": verdict.outcome,
                    "fault": verdict.fault,
                    "seen": verdict.seen,
                    "again": ["--seed", seed, "--only", kind, "--case", str(number)],
                }
                for number, verdict in sorted(tally.faults.items())
            ],
        }
        for kind, tally in tallies.items()
    }
    versions = {name: _version(name) for name in ("shardkit", "torch", "numpy", "transformers")}
    found = {
        **settings,
        "python": platform.python_version(),
        "versions": versions,
        "tried": sum(tally.counts.total() for tally in tallies.values()),
        "bad": n_bad(tallies),
        "kinds": kinds,
    }
    return json.dumps(found, indent=1).encode()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def n_bad(tallies: Mapping[str, Tally]) -> int:
    """Faults of ours, of all kinds."""
    return sum(tally.counts[outcome] for tally in tallies.values() for outcome in BAD)


def _row(kind: str, tally: Tally) -> list[str]:
    counts = [tally.counts.total(), *(tally.counts[outcome] for outcome in Outcome)]
    return [kind, *(f"{count:,}" if count else "-" for count in counts), f"{tally.seconds:,.0f}"]
