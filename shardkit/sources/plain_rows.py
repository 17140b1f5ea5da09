"""Rows that are one question and one answer, text alone: what most instruction data is.

Of a format the plainest shapes of such a row, decoded without a dict, and what they say. All
other rows, and all that could be wrong with one, are for the format's own rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shardkit.conversation import Exchange


@dataclass(frozen=True)
class PlainRows:
    """How rows of one shape are decoded, and which exchanges they are."""

    shape: type[msgspec.Struct]
    exchange: Callable[[Any], Exchange | None]
    """Of a row of that shape; None when it is for the format's own rules."""
    may_be: Callable[[dict[str, object]], bool] = lambda record: True
    """A quick look at a record that was decoded without the shape."""
    of_array: msgspec.json.Decoder[list[Any]] = field(init=False)
    of_lines: msgspec.json.Decoder[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_array", msgspec.json.Decoder(list[self.shape]))  # type: ignore[name-defined]
        object.__setattr__(self, "of_lines", msgspec.json.Decoder(self.shape))

    def converted(self, record: object) -> Exchange | None:
        """The exchange of a record that was decoded without the shape; None when it is none."""
        if not isinstance(record, dict) or len(record) > len(self.shape.__struct_fields__):
            return None
        if not self.may_be(record):
            return None
        try:
            return self.exchange(msgspec.convert(record, self.shape))
        except msgspec.ValidationError:
            return None
