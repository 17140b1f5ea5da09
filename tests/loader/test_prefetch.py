"""The reading thread: in order, bounded, honest about errors, and never left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shardkit.errors import CorruptShard
from shardkit.loader.fetch import Ahead
from shardkit.loader.prefetch import Prefetched


def threads() -> set[threading.Thread]:
    """Reading threads that live."""
    return {thread for thread in threading.enumerate() if thread.name == "shardkit-prefetch"}


@pytest.fixture
def others() -> set[threading.Thread]:
    """Those of other tests: an error that pytest keeps holds its iterators."""
    return threads()


def counting(made: list[int], n: int = 10**9) -> Iterator[int]:
    """0, 1, 2, ... with a note of what was made."""
    for i in range(n):
        made.append(i)
        yield i


@pytest.mark.parametrize("is_eager", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 1000])
def test_all_items_in_order(
    n: int, depth: int, is_eager: bool, others: set[threading.Thread]
) -> None:
    """Nothing is lost, doubled or moved, and the thread is gone at the end."""
    assert list(Prefetched(iter(range(n)), depth, is_eager=is_eager)) == list(range(n))
    assert threads() <= others


@pytest.mark.parametrize("is_eager", [True, False])
def test_a_slow_producer_and_a_slow_consumer(is_eager: bool) -> None:
    """Items that come one at a time are handed over one at a time.

    A generator that two threads ran at once would raise.
    """

    def slow() -> Iterator[int]:
        for i in range(5):
            time.sleep(0.003)
            yield i

    assert list(Prefetched(slow(), 4, is_eager=is_eager)) == list(range(5))
    seen = []
    for item in Prefetched(counting([], 60), 4, is_eager=is_eager):
        time.sleep((0, 0.0005, 0.0015)[item % 3])
        seen.append(item)
    assert seen == list(range(60))


@pytest.mark.parametrize("is_eager", [True, False])
def test_depth_items_are_made_ahead(is_eager: bool) -> None:
    """While nobody asks, the thread makes `depth` items ahead of those handed out, and no more."""
    made: list[int] = []
    items = Prefetched(counting(made), 3, is_eager=is_eager)
    for taken in range(1, 6):
        next(items)
        give_up = time.monotonic() + 120
        while len(made) < taken + 3 and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == taken + 3


def test_a_loop_with_short_steps_finds_its_items_made() -> None:
    """Also behind a first item that took long: the thread works in every pause of the loop."""
    makers: list[str] = []

    def noted() -> Iterator[int]:
        time.sleep(0.05)
        for i in range(60):
            makers.append(threading.current_thread().name)
            yield i

    for _ in Prefetched(noted(), 2, is_eager=False):
        time.sleep(0.004)
    assert makers.count("shardkit-prefetch") > 20


@pytest.mark.parametrize("is_eager", [True, False])
def test_an_error_comes_after_the_items_before_it(
    is_eager: bool, others: set[threading.Thread]
) -> None:
    """The very exception object is raised, with its fields; then the iterator has ended."""
    error = CorruptShard("damaged", where="here", found="x", fix="mend it")

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    items = Prefetched(failing(), 4, is_eager=is_eager)

    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(CorruptShard) as caught:
        next(items)
    assert caught.value is error
    assert list(items) == []
    assert threads() <= others


@pytest.mark.parametrize("is_eager", [True, False])
def test_abandoned_midway(is_eager: bool, others: set[threading.Thread]) -> None:
    """A thread that waits for room ends when nobody holds the iterator any more."""
    for _ in range(5):
        items = Prefetched(counting([]), 2, is_eager=is_eager)
        next(items)
        del items
    gc.collect()

    assert threads() <= others


def test_closed_midway(others: set[threading.Thread]) -> None:
    """After close there are no more items than were handed over already."""
    items = Prefetched(counting([]), 2)
    next(items)
    items.close()

    assert threads() <= others
    assert len(list(items)) <= 2


def test_the_interpreter_exits(tmp_path: object) -> None:
    """A program that ends in the middle of an iteration ends, and quietly."""
    program = (
        "import itertools\n"
        "from shardkit.loader.prefetch import Prefetched\n"
        "items = Prefetched(itertools.count(), 2)\n"
        "print(next(items))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n", "")


def test_an_index_that_cannot_be_read_ends_fetching_ahead_silently() -> None:
    """The order of shards may need indexes: the reader meets the error where it reads them."""

    def needed() -> Iterator[tuple[int, int]]:
        yield 0, 7
        raise CorruptShard("the index does not match its hash")

    ahead = Ahead(lambda number: None, needed(), 2)
    ahead.take(7)
    threads = [one for one in threading.enumerate() if one.name == "shardkit-fetch"]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    ahead.close()
