"""Rows that are one question and one answer, text alone: what most instruction data is.

A format has its plainest shapes of such a row here, decoded without a dict, and what they say. All
other rows, and all that could be wrong with one, are for the format's own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from shardkit.conversation import Exchange
from shardkit.sources.record import Unread, count_path
from shardkit.sources.unread_keys import is_absent, is_switch, why_it_matters


@dataclass(frozen=True)
class PlainRows:
    """How rows of one shape are decoded, and which exchanges they are."""

    shape: type[msgspec.Struct]
    exchange: Callable[[Any], Exchange | None]
    """The exchange of a row of that shape; None when it is for the format's own rules."""
    may_be: Callable[[dict[str, object]], bool] = lambda record: True
    """A quick look at a record that was decoded without the shape."""
    read_elsewhere: frozenset[str] = frozenset()
    """Other keys, in small letters, that the format's own rules read, and that do not change the
    meaning by name."""
    extra: tuple[str, ...] = ()
    """Keys that rows have besides, and nobody reads."""
    of_array: msgspec.json.Decoder[list[Any]] = field(init=False)
    """Decodes a JSON array of rows."""
    of_lines: msgspec.json.Decoder[Any] = field(init=False)
    """Decodes rows of JSONL."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_array", msgspec.json.Decoder(list[self.shape]))  # type: ignore[name-defined]
        object.__setattr__(self, "of_lines", msgspec.json.Decoder(self.shape))

    def widened(self, records: Sequence[object]) -> PlainRows | None:
        """The shape with the other keys of these records; None without any, or when one may matter.

        Rows of a file mostly have the same keys, so that its first ones show all of them.
        """
        keys = {key for record in records if isinstance(record, dict) for key in record}
        extra = tuple(sorted(keys - set(self.shape.__struct_encode_fields__)))
        is_read = any(key.lower() in self.read_elsewhere for key in extra)
        if not extra or is_read or any(map(_may_matter, extra)):
            return None
        return _widened(self, extra)

    def exchanges(self, rows: Sequence[msgspec.Struct]) -> list[Exchange | None]:
        """The exchange of each row; None for those that are for the format's own rules."""
        found = list(map(self.exchange, rows))
        for i, key in enumerate(self.extra):
            get = attrgetter(_EXTRA.format(i))
            for place, value in enumerate(map(get, rows)):
                if type(value) in _MAY_SAY_MORE and _says_more(key, value):
                    found[place] = None
        return found

    def count_extra(self, rows: Sequence[msgspec.Struct], unread: Unread) -> None:
        """Count the keys of rows of this shape that nobody reads."""
        for i, key in enumerate(self.extra):
            values = map(attrgetter(_EXTRA.format(i)), rows)
            n = len(rows) - sum(map(is_absent, values))
            if n:
                count_path(unread, f"$.{key}", n)

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


_EXTRA = "extra_{}"
_MAY_SAY_MORE = frozenset((list, dict, str))
"""Types of values that may change the meaning of their row."""


def _says_more(key: str, value: object) -> bool:
    """Whether a value changes the meaning of its row, by itself or with its key."""
    if type(value) is str and value[:1] not in ("d", "[", "{"):
        return False  # no data URL, no JSON
    return why_it_matters(key, value, True) is not None


@lru_cache(maxsize=64)
def _widened(plain: PlainRows, extra: tuple[str, ...]) -> PlainRows:
    fields = [
        (_EXTRA.format(i), Any, msgspec.field(default=None, name=key))
        for i, key in enumerate(extra)
    ]
    shape = msgspec.defstruct(
        "Widened", fields, bases=(plain.shape,), forbid_unknown_fields=True, gc=False
    )
    return replace(plain, shape=shape, extra=extra)


def _may_matter(key: str) -> bool:
    return key == "label" or is_switch(key) or why_it_matters(key, "text", True) is not None
