"""How deep a row's JSON may be nested: the same on every machine.

A decoder stops where Python's stack ends, which differs between versions of Python and with the
caller's own depth; a row must not be kept on one machine and rejected on another.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

MAX_NESTING = 256
"""Objects and lists inside one another in a row, its own included. A deeper row is rejected."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def is_too_deep(text: bytes, begin: int = 0, end: int | None = None) -> bool:
    """Whether the JSON value text[begin:end] is nested deeper than `MAX_NESTING`."""
    end = len(text) if end is None else end
    if end - begin <= 2 * MAX_NESTING:  # every bracket needs a partner
        return False
    if text.count(b"[", begin, end) + text.count(b"{", begin, end) <= MAX_NESTING:
        return False
    bare = np.frombuffer(_STRING.sub(b"", text[begin:end]), np.uint8)
    # [[{}]] opens 1 1 1 0 0 0, closes 0 0 0 1 1 1: the running difference 1 2 3 2 1 0 is the depth
    opens = (bare == ord("[")) | (bare == ord("{"))
    closes = (bare == ord("]")) | (bare == ord("}"))
    depths = np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int64)
    return bool(depths.max(initial=0) > MAX_NESTING)


def has_deep_row(text: bytes, borders: NDArray[np.int64]) -> bool:
    """Whether a row of a run is nested deeper than `MAX_NESTING`.

    `borders`: (n, 2) begin and end of each row in the file, of which `text` is what these span.
    """
    long = borders[(borders[:, 1] - borders[:, 0]) > 2 * MAX_NESTING] - borders[0, 0]
    return any(is_too_deep(text, begin, end) for begin, end in long.tolist())
