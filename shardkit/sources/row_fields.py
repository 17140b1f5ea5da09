"""What stands beside the turns of a record: a system message, and the tools that it may call."""

from __future__ import annotations

from shardkit.conversation import REASONING
from shardkit.sources.fields import as_list, from_json
from shardkit.sources.record import Fields, unsupported
from shardkit.sources.unread_keys import is_absent

_SYSTEMS = ("system", "system_prompt", "system_message")

_THOUGHTS = frozenset(REASONING)


def system_of(fields: Fields) -> str | None:
    """The record's system message; a second one that says the same counts as read."""
    found = None
    for key in _SYSTEMS:
        if is_absent(fields.peek(key)):
            continue
        if found is None:
            found = fields.optional_text(key)
        elif fields.peek(key) == found:
            fields.get(key)
    return found


def tools_of(fields: Fields) -> tuple[object, ...]:
    """Tool definitions, a list or its JSON text; raises BadField.

    `functions` is OpenAI's old name of them.
    """
    if not is_absent(fields.peek("tools")):
        return _listed(fields, "tools")
    if not is_absent(fields.peek("functions")):
        functions = _listed(fields, "functions")
        return tuple({"type": "function", "function": one} for one in functions)
    return ()


def _listed(fields: Fields, key: str) -> tuple[object, ...]:
    return tool_list(fields.get(key), fields.at(key))


def tool_list(value: object, path: str) -> tuple[object, ...]:
    """A list of tool definitions that may be JSON text, as may each of them; raises BadField."""
    items = as_list(from_json(value, path), path)
    return tuple(from_json(item, f"{path}[{i}]") for i, item in enumerate(items))


def thoughts_of(fields: Fields) -> dict[str, object]:
    """The reasoning of an answer, by the names that it has; BadField where two say two things."""
    found: dict[str, object] = {}
    if not fields.has_any(_THOUGHTS):
        return found
    for key in REASONING:
        if is_absent(fields.peek(key)):
            continue
        value = found[key] = fields.get(key)
        if not isinstance(value, str):
            raise unsupported(fields.at(key), "only text is understood as reasoning", key)
        first = next(iter(found))
        if value != found[first]:
            raise unsupported(fields.at(key), f"it says something else than {first}", key)
    return found
