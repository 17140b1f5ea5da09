"""Hostile values, and changes of a JSON tree by its structure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

JSON = Any

DEEP = 3000
"""Levels of nesting, beyond what a recursive parser takes."""


class Verbatim(str):
    """Text that stands in the JSON as it is, for what Python would not write."""


HOSTILE: list[JSON] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**40,
    1.5,
    Verbatim("NaN"),
    Verbatim("1e999"),
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "\0",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [[]],
    ["a"],
    {"a": {"b": []}},
    Verbatim("[" * DEEP + "]" * DEEP),
    Verbatim('{"a":' * DEEP + "1" + "}" * DEEP),
]
"""What may stand in the place of any value."""


def change(tree: JSON, chance: Random) -> tuple[JSON, str]:
    """The tree with one change, and what it was. The tree itself is changed."""
    places = list(_places(tree, "$"))
    holder, key, path = chance.choice(places)
    name = chance.choice(list(_CHANGES))
    return tree, f"{path}: {_CHANGES[name](holder, key, chance)}"


def text_of(tree: JSON) -> bytes:
    """As JSON, one line for each field at the top; lone surrogates and Verbatim as they are."""
    if not isinstance(tree, dict):
        return _dump(tree).encode("utf-8", "surrogatepass")
    lines = (f"{json.dumps(key)}: {_dump(value)}" for key, value in tree.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "surrogatepass")


def _dump(value: JSON) -> str:
    if isinstance(value, Verbatim):
        return value
    if isinstance(value, dict):
        inner = (f"{json.dumps(str(k))}:{_dump(v)}" for k, v in value.items())
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _places(tree: JSON, path: str) -> Iterator[tuple[JSON, Any, str]]:
    """(container, key, path) of every value below the top."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key, f"{path}.{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{path}.{key}")


def _remove(holder: JSON, key: Any, chance: Random) -> str:
    del holder[key]
    return "removed"


def _replace(holder: JSON, key: Any, chance: Random) -> str:
    holder[key] = chance.choice(HOSTILE)
    return f"is {_dump(holder[key])[:40]}"


def _nudge(holder: JSON, key: Any, chance: Random) -> str:
    old = holder[key]
    if isinstance(old, int | float):
        holder[key] = old + chance.choice([-1, 1, 512, -512])
    elif isinstance(old, str):
        holder[key] = old[1:] + old[:1] if chance.random() < 0.5 else old + "x"
    elif isinstance(old, list):
        holder[key] = list(reversed(old)) if chance.random() < 0.5 else old + old[:1]
    else:
        holder[key] = [old]
    return f"from {_dump(old)[:40]} to {_dump(holder[key])[:40]}"


def _rename(holder: JSON, key: Any, chance: Random) -> str:
    if not isinstance(holder, dict):
        return _nudge(holder, key, chance)
    entries = list(holder.items())
    holder.clear()
    holder.update({(f"{k}_" if k == key else k): v for k, v in entries})
    return "renamed"


def _move(holder: JSON, key: Any, chance: Random) -> str:
    others = [k for k in (holder if isinstance(holder, dict) else range(len(holder))) if k != key]
    if not others:
        return _replace(holder, key, chance)
    other = chance.choice(others)
    holder[key], holder[other] = holder[other], holder[key]
    return f"changed places with {other}"


_CHANGES: dict[str, Callable[[JSON, Any, Random], str]] = {
    "remove": _remove,
    "replace": _replace,
    "nudge": _nudge,
    "rename": _rename,
    "move": _move,
}
