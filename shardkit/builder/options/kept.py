"""How an option stands on the command line and in a dataset's identity: headings, and `Kept`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import msgspec

from shardkit.options import hints_of

TOKENS, IMAGES, ROWS, RUNNING = "tokens and labels", "images", "rows and shards", "running"
"""The headings of the command's options."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the identity keeps an option."""

    place: Literal["recipe", "images", "layout", "identity"]
    always: bool = True
    """Whether a default is kept too. Not for newer options: older fingerprints stay as they are."""
    name: str | None = None
    """The option's name in that place, where it has another one there."""


RECIPE, LAYOUT = Kept("recipe"), Kept("layout")
RECIPE_IF_GIVEN = Kept("recipe", always=False)
IN_IMAGES = Kept("images")
IN_IMAGES_IF_GIVEN = Kept("images", always=False)


def kept_options(options: type[msgspec.Struct]) -> dict[str, Kept]:
    """The options of a class that the identity keeps, by name, with where it does."""
    return {
        name: part
        for name, hint in hints_of(options).items()
        for part in get_args(hint)
        if isinstance(part, Kept)
    }


@cache
def defaults_of(options: type[msgspec.Struct]) -> dict[str, Any]:
    """The default of each option of a class, by name."""
    return {field.name: field.default for field in msgspec.structs.fields(options)}


def kept_values(options: msgspec.Struct, place: str) -> dict[str, Any]:
    """The values that the identity keeps in `place`, by the names that they have there."""
    default = defaults_of(type(options))
    values: dict[str, Any] = {}
    for name, kept in kept_options(type(options)).items():
        value = getattr(options, name)
        if kept.place == place and (kept.always or value != default[name]):
            values[kept.name or name] = value
    return values
