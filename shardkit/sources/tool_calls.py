"""Calls that stand in a turn as text, and OpenAI's older form of one."""

from __future__ import annotations

import msgspec

from shardkit.sources.fields import BadField, as_object, from_json, kind_of


def calls_of_text(value: object, path: str) -> tuple[tuple[object, ...], str]:
    """(calls as OpenAI writes them, the text as it stands) of a turn that is a call or several.

    Raises BadField.
    """
    found = from_json(value, path)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    items = found if isinstance(found, list) else [found]
    if not items:
        raise BadField(path, "there is no call in it")
    return tuple(_call(item, path) for item in items), text


def legacy_call(value: object, path: str) -> object:
    """The one `function_call` of a message as an item of `tool_calls`; raises BadField."""
    return _call(from_json(value, path), path)


def _call(value: object, path: str) -> object:
    call = as_object(value, path)
    if isinstance(call.get("function"), dict):
        return call
    if not isinstance(call.get("name"), str):
        detail = f"a call without a name, found {kind_of(call.get('name'))}"
        raise BadField(f"{path}.name", detail)
    return {"type": "function", "function": dict(call)}
