"""Records whose keys are added, renamed and retyped, and what must have become of each."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

import msgspec

from shardkit.conversation import Conversation, Reject
from shardkit.sources import SOURCES, ReadOptions, Unread

MEANINGFUL = [
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "thinking",
    "weight",
    "train",
    "trainable",
    "loss",
    "loss_mask",
    "loss_weight",
    "mask",
    "tools",
    "tool_calls",
    "tool_choice",
    "functions",
    "function_call",
    "image",
    "images",
    "videos",
    "video",
    "audio",
    "audios",
    "chosen",
    "rejected",
    "label",
    "system",
    "system_prompt",
    "imageUrl",
    "toolCalls",
    "answer_mask",
]
"""Keys that change the meaning, in the words of those who publish data; not from the code."""
SWITCHES = ("weight", "train", "trainable", "loss", "loss_mask", "loss_weight")
_BASE: list[tuple[str, Any]] = [
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}),
    ("alpaca", {"question": "Why?", "answer": "So."}),
    ("text", {"text": "A document."}),
    (
        "chat",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    ),
    (
        "chat",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                {"role": "user", "content": "Q2"},
                {"role": "assistant", "content": "A2"},
            ]
        },
    ),
    (
        "chat",
        {
            "tools": [{"name": "f"}],
            "messages": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "R", "tool_call_id": "1"},
                {"role": "assistant", "content": "A", "reasoning_content": "hm"},
            ],
        },
    ),
]


@dataclass(frozen=True)
class Case:
    """One changed record, and the key that now carries a mark."""

    kind: str
    record: Any
    key: str
    mark: str
    """A text that stands in the value, and nowhere else; "" for a switch that is off."""


def make(seed: int) -> Case:
    """A record with one known key added, put in another key's place, or given another type."""
    rng = random.Random(seed)
    kind, record = copy.deepcopy(rng.choice(_BASE))
    key = rng.choice(MEANINGFUL)
    mark = f"mark-{seed}"
    places = list(_objects(record))
    place = rng.choice(places)
    if rng.random() < 0.3 and place:
        old = rng.choice(sorted(place))
        if old in MEANINGFUL:
            key = old
        else:
            del place[old]
    if key in SWITCHES and rng.random() < 0.5:
        place[key], mark = rng.choice([False, 0, "false"]), ""
    elif key == "label":
        place[key], mark = rng.random() < 0.5, "label"
    else:
        place[key] = rng.choice(
            [
                mark,
                [mark],
                {"a": mark},
                [{"b": mark}],
                json.dumps([{"name": mark}]),
                [{"function": {"name": mark, "arguments": {}}}],
                {"name": mark, "arguments": "{}"},
                [{"type": "text", "text": mark}],
            ]
        )
    for _ in range(rng.randrange(3)):
        rng.choice(places).setdefault(f"extra{rng.randrange(5)}", rng.choice([1, "x", None, []]))
    return Case(kind, record, key, mark)


def _objects(value: Any) -> Any:
    """The record, its messages and their content parts."""
    if isinstance(value, dict):
        yield value
        for name in ("conversations", "messages", "content"):
            items = value.get(name)
            for item in items if isinstance(items, list) else ():
                yield from _objects(item)


def lost(case: Case) -> str | None:
    """What is wrong with how the record was read; None where nothing was lost."""
    unread = Unread()
    found = SOURCES[case.kind].read(case.record, ReadOptions(), unread)
    if isinstance(found, Reject):
        return None if found.detail else f"no reason given: {case}"
    if case.mark and case.mark != "label":
        shown = json.dumps(msgspec.to_builtins(found))
        return None if case.mark in shown else f"lost {case.key}: {case.record} -> {shown}"
    if case.mark == "label":
        return f"a label was kept: {case.record}"
    return None if _is_off(found, case.record) else f"a switch was lost: {case.record}"


def _is_off(found: Conversation, record: Any) -> bool:
    """Whether every switch that is off stands on a message or part without loss."""
    n_off = 0
    for message in record.get("messages") or record.get("conversations") or ():
        role = message.get("role") or message.get("from")
        parts = message["content"] if isinstance(message.get("content"), list) else []
        for switched in (message, *parts):
            if any(switched.get(key) in (False, 0, "false") for key in SWITCHES if key in switched):
                n_off += role in ("assistant", "gpt")
    if any(key in record for key in SWITCHES):
        return False
    silent = sum(not message.supervised or message.has_switched_parts for message in found.messages)
    return silent >= min(n_off, 1)
