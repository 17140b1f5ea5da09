"""Who wants to know how far the fetching of files is: a progress bar, for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnFetched = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of it that are here, and all its bytes."""

_listeners: list[OnFetched] = []


@contextmanager
def fetch_progress_to(listener: OnFetched) -> Iterator[None]:
    """While it lasts, `listener` hears of what this process fetches, from any of its threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report_progress(name: str, n_done: int, n_total: int) -> None:
    """Tell all listeners how much of a file is fetched."""
    for listener in _listeners:
        listener(name, n_done, n_total)
