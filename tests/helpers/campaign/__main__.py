"""The campaign as a command; see the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import msgspec

from campaign.kinds import CAMPAIGNS
from campaign.report import as_json, extra_counts, n_bad, reproducers, table
from campaign.supervise import Line, Tally, run_kind


def main() -> int:
    """Run; 1 when a fault of ours was found."""
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only",
        action="append",
        choices=CAMPAIGNS,
        metavar="KIND",
        help=f"may be repeated: {', '.join(CAMPAIGNS)}",
    )
    parser.add_argument("--case", type=int, help="of --only: do this one alone")
    n_cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=n_cores, help="children, one a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts and faults")
    parser.add_argument("--child", nargs=4, type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        *numbers, seconds = chosen.child
        _do_cases(chosen.only[0], chosen.seed, range(*map(int, numbers)), seconds)
        return 0
    if chosen.case is not None:
        if chosen.only is None:
            parser.error("--case is a number of one kind: say which with --only")
        return _do_one(chosen.only[0], chosen.seed, chosen.case)
    kinds = chosen.only or list(CAMPAIGNS)
    shares = sum(CAMPAIGNS[kind].share for kind in kinds)
    tallies: dict[str, Tally] = {}
    for kind in kinds:
        seconds = chosen.seconds * CAMPAIGNS[kind].share / shares
        print(f"{kind}: {seconds:.0f} s ...", file=sys.stderr, flush=True)
        tallies[kind] = run_kind(kind, chosen.seed, seconds, chosen.jobs)
        if chosen.json is not None:  # after each kind: what ends the campaign early loses one
            settings = {"seed": chosen.seed, "seconds": chosen.seconds, "jobs": chosen.jobs}
            chosen.json.write_bytes(as_json(tallies, settings))
    lines = [*reproducers(tallies, chosen.seed), "", *table(tallies), *extra_counts(tallies)]
    print("\n".join(lines))
    return 1 if n_bad(tallies) else 0


def _do_cases(kind: str, seed: int, numbers: range, seconds: float) -> None:
    """What a child does: one case after the other, each said before and after."""
    from campaign import commands, uploads
    from campaign.case import limit_memory, run_case
    from campaign.room import Room

    warnings.simplefilter("ignore")
    end = time.monotonic() + seconds
    limit_memory()
    lines = os.fdopen(os.dup(1), "w")

    def say(line: Line) -> None:
        lines.write(msgspec.json.encode(line).decode() + "\n")
        lines.flush()

    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, redirect_stdout(sys.stderr):
        os.environ["SHARDKIT_CACHE"] = f"{folder}/cache"
        room = Room(Path(folder))
        for number in numbers:
            if time.monotonic() >= end:
                break
            say(Line(number))
            verdict = run_case(kind, seed, number, room)
            fault, seen = (
                text.encode("utf-8", "replace").decode()
                for text in (verdict.fault[:400], verdict.seen[:400])
            )
            say(Line(number, verdict.outcome, fault, seen, dict(verdict.counts)))
        uploads.close()
        commands.close()


def _do_one(kind: str, seed: int, number: int) -> int:
    """One case, here; what came of it."""
    from campaign import commands, uploads
    from campaign.case import limit_memory, run_case
    from campaign.room import Room

    limit_memory()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        os.environ["SHARDKIT_CACHE"] = f"{folder}/cache"
        verdict = run_case(kind, seed, number, Room(Path(folder)))
        counts = ", ".join(f"{name} {n:,}" for name, n in verdict.counts.items())
        print(f"{verdict.outcome}: {verdict.fault}\n{verdict.seen or counts}")
        uploads.close()
        commands.close()
    return 1 if verdict.is_bad else 0


if __name__ == "__main__":
    sys.exit(main())
