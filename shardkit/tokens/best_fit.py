"""Which items share a bin, so that few bins are needed and no item is cut?

Best-fit decreasing: the largest item first (of equal ones the earlier), each into the bin with the
least room that still holds it, else into a new one. Rooms are small integers, so the bins with a
given room are a stack, and the rooms that occur are bits of one integer: finding the best bin is a
shift and a count of trailing zeros. About a microsecond an item.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_fit(
    sizes: NDArray[np.int64],
    capacity: int,
    counts: NDArray[np.int64] | None = None,
    max_count: int | None = None,
) -> NDArray[np.int64]:
    """(n,) the bin of each item; bins are numbered from 0 in the order they were opened.

    The sizes of a bin add up to `capacity` at most, and so do its `counts` to `max_count`.
    No size and no count may be above its limit.
    """
    order = np.argsort(-sizes, kind="stable")
    if counts is None or max_count is None or not counts.any():
        chosen = _by_size(sizes[order].tolist(), capacity)
    else:
        chosen = _by_size_and_count(
            sizes[order].tolist(), capacity, counts[order].tolist(), max_count
        )
    bins = np.empty(len(sizes), np.int64)
    bins[order] = chosen
    return bins


def _by_size(sizes: list[int], capacity: int) -> list[int]:
    """The bin of each item; bit r of `open_rooms` is set when a bin has just r left.

    Rooms 3 and 6 are open: 0b1001000. For size 4 they become 0b100, whose lowest bit is 2, so the
    best room is 2 + 4 = 6.
    """
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0
    chosen = []
    n_bins = 0
    for size in sizes:
        fitting = open_rooms >> size
        if fitting:
            room = (fitting & -fitting).bit_length() - 1 + size
            stack = rooms[room]
            number = stack.pop()
            if not stack:
                open_rooms ^= 1 << room
        else:
            room, number = capacity, n_bins
            n_bins += 1
        chosen.append(number)
        left = room - size
        if not rooms[left]:
            open_rooms |= 1 << left
        rooms[left].append(number)
    return chosen


def _by_size_and_count(
    sizes: list[int], capacity: int, counts: list[int], max_count: int
) -> list[int]:
    """Best fit with a second limit: one set of rooms for each count that bins have reached.

    Of bins with the same room the one with the highest count is taken.
    """
    rooms: dict[tuple[int, int], list[int]] = {}
    open_rooms = [0] * (max_count + 1)
    chosen = []
    n_bins = 0
    for size, count in zip(sizes, counts, strict=True):
        best, best_used = capacity + 1, -1
        for used in range(max_count - count, -1, -1):
            fitting = open_rooms[used] >> size
            if fitting:
                room = (fitting & -fitting).bit_length() - 1 + size
                if room < best:
                    best, best_used = room, used
        if best_used >= 0:
            stack = rooms[best, best_used]
            number = stack.pop()
            if not stack:
                open_rooms[best_used] ^= 1 << best
        else:
            best, best_used, number = capacity, 0, n_bins
            n_bins += 1
        chosen.append(number)
        left, used = best - size, best_used + count
        rooms.setdefault((left, used), []).append(number)
        open_rooms[used] |= 1 << left
    return chosen
