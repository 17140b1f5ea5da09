"""The conversations that each template is asked to print."""

from __future__ import annotations

import json
from typing import Any

from shardkit.conversation import Conversation, Message

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "one"},
                    "b": {"type": "string", "description": "two"},
                },
                "required": ["a"],
            },
        },
    }
]
Row = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]
"""Messages as transformers takes them, and the tools."""


def user(text: Any) -> dict[str, Any]:
    """A question: a text, or a list of parts."""
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    """An answer, with its reasoning or calls."""
    return {"role": "assistant", "content": text, **more}


def call(arguments: object, number: int = 1) -> dict[str, Any]:
    """A call of `add`."""
    function = {"name": "add", "arguments": arguments}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def result(text: str, number: int = 1) -> dict[str, Any]:
    """What the call with this number gave."""
    return {"role": "tool", "content": text, "tool_call_id": f"call{number:05d}", "name": "add"}


SYSTEM = {"role": "system", "content": "Be brief."}
SUM = {"a": 41, "b": "x é"}
ROWS: dict[str, Row] = {
    "one": ([user("Hello there"), answer("Hi! 😀")], None),
    "multi": ([user("What?"), answer("This."), user("And?"), answer("That <b>.")], None),
    "system": ([SYSTEM, user("What?"), answer("This."), user("and"), answer("ok")], None),
    "reasoning": ([user("What?"), answer("This.", reasoning_content='See "it".\nYes')], None),
    "thinking": ([user("What?"), answer("This.", thinking="Let me see.")], None),
    "reasoning twice": (
        [
            *[user("What?"), answer("This.", reasoning_content="Let me see.")],
            *[user("And?"), answer("That.", reasoning_content="A second thought.")],
        ],
        None,
    ),
    "tool": (
        [user("Sum?"), answer("", tool_calls=[call(SUM)]), result('{"n": 3}'), answer("3.")],
        TOOLS,
    ),
    "tool, reasoning": (
        [
            *[user("Sum?"), answer("", reasoning_content="Call it.", tool_calls=[call(SUM)])],
            *[result("three"), answer("It is 3.", reasoning_content="Done.")],
        ],
        TOOLS,
    ),
    "parallel tools": (
        [
            *[user("Sums?"), answer("", tool_calls=[call(SUM), call({"a": 57, "b": "y"}, 2)])],
            *[result("three"), result("seven", 2), answer("3 and 7.")],
        ],
        TOOLS,
    ),
    "string arguments": (
        [
            *[user("Sum?"), answer("", tool_calls=[call(json.dumps(SUM))])],
            *[result("three"), answer("It is 3.")],
        ],
        TOOLS,
    ),
    "words and a call": (
        [user("Sum?"), answer("I call.", tool_calls=[call(SUM)]), result("3"), answer("3.")],
        TOOLS,
    ),
    "no answer to the last": ([user("What?"), answer("This."), user("And?")], None),
}


def conversation(row: Row) -> Conversation:
    """The row as the readers hand it to a template."""
    messages, tools = row
    known = ("role", "content", "tool_calls", "name")
    return Conversation(
        tuple(
            Message(
                message["role"],
                message["content"],
                tool_calls=tuple(message.get("tool_calls", ())),
                name=message.get("name"),
                fields={key: value for key, value in message.items() if key not in known},
            )
            for message in messages
        ),
        tools=tuple(tools or ()),
    )
