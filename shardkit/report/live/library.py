"""The samples of a dataset by number, with a few shards held open."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock

import numpy as np

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.shard import Shard
from shardkit.report.origins import places_of_row
from shardkit.report.page.cards import Card, Cards
from shardkit.report.page.marks import Marker
from shardkit.report.view import find_sample

N_OPEN = 16
"""Shards held open."""
N_CHARACTERS = 400_000
"""Characters of the text of a sample that is shown by itself."""


class Library:
    """Samples of a dataset by number. Threads may share it; memory is that of N_OPEN indexes."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.firsts = np.concatenate([[0], np.cumsum(dataset.manifest.sizes)])
        self.n_samples = int(self.firsts[-1])
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._lock = RLock()
        marker = Marker(dataset)
        self._short = Cards(dataset, marker, max_characters=20_000)
        self._long = Cards(dataset, marker, max_characters=N_CHARACTERS, thumbnail=384)

    def card(self, position: int, *, is_long: bool = False) -> Card:
        """The sample at a position, from 0; raises CorruptShard, and UsageError beyond the end."""
        number, row = find_sample(self.dataset.manifest, str(position))
        maker = self._long if is_long else self._short
        with self._lock:
            return maker.card(self.shard(number), number, row, int(self.firsts[number]))

    def shard(self, number: int) -> Shard:
        """A shard, opened or still open."""
        with self._lock:
            if number in self._shards:
                self._shards.move_to_end(number)
                return self._shards[number]
            shard = self.dataset.open_shard(number)
            self._shards[number] = shard
            if len(self._shards) > N_OPEN:
                self._shards.popitem(last=False)  # closed when no thread reads it any more
            return shard

    def shard_of(self, position: int) -> int:
        """The number of the shard that holds the sample at a position."""
        return int(np.searchsorted(self.firsts, position, side="right")) - 1

    def find(self, wanted: str) -> int:
        """The position of SHARD/KEY, of a number, or of the first piece of FILE:ROW.

        Raises UsageError when there is no such sample.
        """
        name, colon, row = wanted.strip().rpartition(":")
        if colon and row.isdecimal() and name in self.dataset.manifest.source_names:
            return self._find_row(name, int(row))
        number, at = find_sample(self.dataset.manifest, wanted.strip().removesuffix(".tar"))
        return int(self.firsts[number]) + at

    def _find_row(self, name: str, row: int) -> int:
        source = self.dataset.manifest.source_names.index(name)
        places = places_of_row(self.dataset, source, row)
        if not places:
            raise UsageError(
                f"row {row} of {name} is in no shard",
                fix="Look for it among the rejected rows.",
            )
        number, at = places[0][:2]
        return int(self.firsts[number]) + at


def differences(one: Library, a: int, two: Library, b: int) -> list[str]:
    """Whether two samples have the same ids and labels, and where they first differ, in words."""
    tokens = []
    for library, position in ((one, a), (two, b)):
        number = library.shard_of(position)
        tokens.append(library.shard(number).tokens(position - int(library.firsts[number]))[:2])
    lines = []
    for row, name in enumerate(("input_ids", "labels")):
        first, second = tokens[0][row], tokens[1][row]
        n = min(len(first), len(second))
        unlike = np.flatnonzero(first[:n] != second[:n])
        if len(first) == len(second) and not len(unlike):
            lines.append(f"{name} are equal.")
        elif len(unlike):
            at = int(unlike[0])
            lines.append(f"{name} differ from token {at:,} on: {first[at]} and {second[at]}.")
        else:
            lines.append(f"{name} are equal as far as the shorter goes, {n:,} tokens.")
    return lines
