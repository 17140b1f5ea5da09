"""The JSON value of a row, or of a part of one: the same wherever the row is stored."""

from __future__ import annotations

import json

import msgspec

from shardkit.conversation import Reason, Reject
from shardkit.sources.nesting import MAX_NESTING, is_too_deep

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a text that is no JSON."""
_decode = msgspec.json.Decoder().decode


class NotJson(ValueError):
    """A text inside a row that is no JSON. Never leaves sources/."""


def from_text(text: str) -> object:
    """The JSON value of a text inside a row; raises NotJson."""
    found = parse(text.encode(errors="surrogatepass"))
    if isinstance(found, Reject):
        raise NotJson(found.detail)
    return found


def parse(text: bytes) -> object | Reject:
    """The JSON value of a text, or why it is none."""
    try:
        if not is_too_deep(text):
            return _decode(text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        found = _with_constants(text)
        return Reject(Reason.BAD_JSON, str(err)) if found is None else found
    except RecursionError:  # the caller's own stack was nearly full
        pass
    return Reject(Reason.BAD_JSON, f"nested deeper than {MAX_NESTING} levels")


def _with_constants(text: bytes) -> object | None:
    """The value of a text that has NaN or Infinity, as Python's json writes and reads them.

    None for a text that is broken otherwise.
    """
    if b"NaN" not in text and b"Infinity" not in text:
        return None
    try:
        found: object = json.loads(text)
        msgspec.json.encode(found)  # refuses halves of surrogate pairs
    except (ValueError, RecursionError):
        return None
    return found
