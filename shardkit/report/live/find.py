"""The next samples of a kind, from a position on, by the indexes: nothing else is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from shardkit.format.shard import Shard
from shardkit.report.live.library import Library
from shardkit.report.page.cards import Card
from shardkit.report.page.survey import images_of, places_of

PAGE = 20
"""Samples of a page."""
MAX_ROWS = 5_000_000
"""Index rows that one page looks at, at most."""
MAX_READ = 2_000
"""Samples whose text one page searches, at most."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which samples are wanted."""

    first: int = 0
    """Position to begin at."""
    text: str = ""
    """Words that a sample's text holds, in any case."""
    source: str = ""
    """The name of a source file."""
    low: int = 0
    """Places in the model, at least."""
    high: int | None = None
    """Places in the model, at most."""
    cut: bool = False
    """Only samples that truncation shortened."""
    pictures: bool = False
    """Only samples with pictures."""
    unanswered: bool = False
    """Only samples without a supervised token."""

    def link(self, first: int) -> str:
        """The address of the same query from another position on."""
        values: dict[str, object] = {"from": first}
        for name in ("text", "source", "low", "high", "cut", "pictures", "unanswered"):
            value = getattr(self, name)
            if value not in ("", 0, None, False):
                values[name] = int(value) if isinstance(value, bool) else value
        return f"/samples?{urlencode(values)}"


@dataclass(slots=True)
class Found:
    """Samples of one page."""

    positions: list[int] = field(default_factory=list)
    looked_to: int = 0
    """The position after the last one that was looked at."""
    is_partial: bool = False
    """Whether the search stopped before it had a page or reached the end."""


def find(library: Library, query: Query) -> Found:
    """The first PAGE samples from `query.first` on that are wanted."""
    found = Found(looked_to=query.first)
    n_rows = n_read = 0
    while found.looked_to < library.n_samples and len(found.positions) < PAGE:
        number = library.shard_of(found.looked_to)
        first = int(library.firsts[number])
        shard = library.shard(number)
        wanted = wanted_rows(library, number, shard, query)
        for row in wanted[wanted >= found.looked_to - first].tolist():
            found.looked_to = first + row + 1
            if query.text:
                n_read += 1
                if not holds(library.card(first + row), query.text):
                    row = -1
            if row >= 0:
                found.positions.append(first + row)
            if len(found.positions) == PAGE:
                return found
            if n_read >= MAX_READ:
                found.is_partial = True
                return found
        found.looked_to = int(library.firsts[number + 1])
        n_rows += shard.n_samples
        if n_rows >= MAX_ROWS and found.looked_to < library.n_samples:
            found.is_partial = True
            return found
    return found


def before(library: Library, query: Query) -> int:
    """The position at which the page before begins."""
    positions: list[int] = []
    for position in _backwards(library, query):
        positions.append(position)
        if len(positions) == PAGE:
            break
    return positions[-1] if positions else 0


def _backwards(library: Library, query: Query) -> Iterator[int]:
    """Wanted samples before `query.first`, last first; text is not looked at."""
    number, n_rows = library.shard_of(max(0, query.first - 1)), 0
    while number >= 0 and n_rows < MAX_ROWS:
        first, shard = int(library.firsts[number]), library.shard(number)
        rows = wanted_rows(library, number, shard, query)
        for row in rows[rows < query.first - first][::-1].tolist():
            yield first + row
        n_rows += shard.n_samples
        number -= 1


def wanted_rows(library: Library, number: int, shard: Shard, query: Query) -> NDArray[np.int64]:
    """The rows of a shard that are wanted, by its index alone."""
    index = shard.index
    which = np.ones(len(index), np.bool_)
    if query.cut:
        which &= index["n_cut"] > 0
    if query.pictures:
        which &= index["n_images"] > 0
    if query.unanswered:
        which &= index["n_supervised"] == 0
    if query.low or query.high is not None:
        recipe = library.dataset.manifest.recipe
        lengths = places_of(shard, images_of(recipe).get("image_tokens") or 1)
        which &= lengths >= query.low
        if query.high is not None:
            which &= lengths <= query.high
    if query.source:
        names = library.dataset.builds[number].source_names
        if query.source not in names:
            return np.zeros(0, np.int64)
        own = names.index(query.source)
        if shard.segments is None:
            which &= index["source"] == own
        else:
            holds_it = np.zeros(len(index), np.bool_)
            holds_it[shard.segments["sample"][shard.segments["source"] == own]] = True
            which &= holds_it
    return np.flatnonzero(which)


def holds(card: Card, text: str) -> bool:
    """Whether a sample's text holds these words, in any case."""
    words = text.lower()
    return any(
        words in "".join(run.text for run in document.runs).lower() for document in card.documents
    )
