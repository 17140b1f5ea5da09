"""One case of a kind, by seed and number: always the same fault."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType

from campaign.kinds import CAMPAIGNS
from campaign.room import Room
from campaign.verdict import Outcome, Verdict

SECOND_S = 60.0
"""What a case that was given up gets at least when it is done again."""


class _TookTooLong(BaseException):
    """Not an Exception, so that nothing that is tested catches it."""


def run_case(kind: str, seed: int, number: int, room: Room) -> Verdict:
    """Do it, within the kind's patience where the interpreter can be interrupted.

    A case that was given up is done once more, in a minute at least: the machine may have been
    busy, and the first case of a child makes the datasets.
    """
    one = CAMPAIGNS[kind]
    for patience in (one.patience_s, max(one.patience_s, SECOND_S)):
        try:
            with _at_most(patience):
                return one.case(room, Random(f"{seed}/{kind}/{number}"), number)
        except _TookTooLong:
            continue
    return Verdict(Outcome.HANG, f"case {number} of {kind}", f"over {patience:.0f} s, twice")


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def give_up(signum: int, frame: FrameType | None) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(n_bytes: int = 6 << 30) -> None:
    """Let this process end with a MemoryError, and not take the machine's memory."""
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        _, hard = resource.getrlimit(kind)
        limit = n_bytes * (4 if kind == resource.RLIMIT_AS else 1)
        resource.setrlimit(kind, (limit if hard < 0 else min(limit, hard), hard))
