"""Is training waiting for data, and on which shard? Optional figures of every step."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

log = logging.getLogger("shardkit.loader")

WINDOW_STEPS = 50
"""Steps over which waiting is looked at."""
WAIT_SHARE = 0.2
"""The part of the time that training may wait without a warning."""


@dataclass(slots=True)
class Timings:
    """What making one batch took, where it was made; seconds."""

    read_s: float = 0.0
    decode_s: float = 0.0
    collate_s: float = 0.0
    n_bytes: int = 0
    """Bytes of the tokens that were read, as they lie in the shards."""
    n_tokens: int = 0
    """Tokens of the batch without padding."""
    n_places: int = 0
    """Places for tokens in the padded batch."""
    slowest_shard: str = ""
    """The shard of the sample whose reading took longest, and how long, in seconds."""
    slowest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step: seconds, bytes and tokens of this rank."""

    epoch: int
    position: int
    """The position of the epoch at which the global batch begins."""
    wait_s: float
    """Seconds that the training loop waited for this batch."""
    work_s: float
    """Seconds from the batch before to asking for this one: the training step itself."""
    timings: Timings
    is_first: bool = False
    """Whether the step is an iteration's first: it waits for threads or workers that start."""

    @property
    def padding_share(self) -> float:
        """The part of the batch that is padding."""
        return 1 - self.timings.n_tokens / max(1, self.timings.n_places)


@dataclass
class Health:
    """The figures of the last steps of a loader, and a warning when training waits on data."""

    n_kept: int = 1000
    steps: deque[StepStats] = field(init=False)
    n_steps: int = 0
    n_bytes: int = 0
    n_tokens: int = 0
    wait_s: float = 0.0
    """`n_steps` to `wait_s`: sums over all steps of this rank."""
    _warned_at: int = field(default=-(10**9), repr=False)

    def __post_init__(self) -> None:
        self.steps = deque(maxlen=self.n_kept)

    def add(self, step: StepStats) -> None:
        """Take the figures of a step; warns at most once in 1,000 steps."""
        self.steps.append(step)
        self.n_steps += 1
        self.n_bytes += step.timings.n_bytes
        self.n_tokens += step.timings.n_tokens
        self.wait_s += step.wait_s
        if self.n_steps % WINDOW_STEPS == 0 and self.n_steps - self._warned_at >= 1000:
            self._warn()

    @property
    def wait_share(self) -> float:
        """The part of the time that training waited for data, over the last steps.

        First batches do not count: nothing was made ahead then.
        """
        recent = [step for step in list(self.steps)[-WINDOW_STEPS:] if not step.is_first]
        total = sum(step.wait_s + step.work_s for step in recent)
        return sum(step.wait_s for step in recent) / total if total else 0.0

    def describe(self) -> str:
        """One line: how much of the time training waited, on what, on which shard."""
        recent = [step.timings for step in self.steps][-WINDOW_STEPS:]
        if not recent:
            return "no steps yet"
        names = ("read", "decode", "collate")
        parts = ", ".join(
            f"{name} {1000 * sum(getattr(t, name + '_s') for t in recent) / len(recent):.1f} ms"
            for name in names
        )
        slowest = max(recent, key=lambda timings: timings.slowest_s)
        return (
            f"training waits on data {self.wait_share:.0%} of the time (a batch takes {parts}; "
            f"slowest: {slowest.slowest_shard or 'none'} {1000 * slowest.slowest_s:.1f} ms)"
        )

    def _warn(self) -> None:
        if self.wait_share > WAIT_SHARE:
            self._warned_at = self.n_steps
            log.warning("%s: more num_workers or prefetch may help", self.describe())
