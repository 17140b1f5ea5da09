"""Texts of the command line as values of options, and what of them is allowed."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import msgspec


def named_value(text: str) -> dict[str, Any]:
    """What `NAME=VALUE` names, whose value is JSON where it can be; raises ValueError."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return {name: msgspec.json.decode(value)}
    except msgspec.DecodeError:
        return {name: value}


FIELDS = (
    *("instruction", "input", "output", "history", "question", "answer", "text", "messages"),
    *("system", "tools", "images", "id", "input_ids", "labels"),
    *("prompt", "chosen", "rejected", "completion", "label", "reasoning_content"),
)
"""Fields that columns of another name may be mapped to."""


def columns_of(text: str) -> dict[str, str]:
    """The columns of `OURS=THEIRS,...`; raises ValueError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if len(found) < len(pairs) or not are_columns(found):
        raise ValueError(f"{text!r} is not OURS=THEIRS,... with OURS one of {', '.join(FIELDS)}")
    return found


def are_columns(columns: Mapping[str, str] | None) -> bool:
    """Whether each of our names is in FIELDS and each column is named once; None is right."""
    if columns is None:
        return True
    theirs = list(columns.values())
    return set(columns) <= set(FIELDS) and all(theirs) and len(set(theirs)) == len(theirs)


def names_of_list(text: str) -> list[str]:
    """The names of `NAME,...`; raises ValueError."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r} is not a list of names")
    return names


def id_or_text(text: str) -> int | str:
    """The whole number that a text spells, else the text."""
    try:
        return int(text)
    except ValueError:
        return text


def is_date(text: str | None) -> bool:
    """Whether a text is a day as YYYY-MM-DD; None is right."""
    try:
        return text is None or datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
