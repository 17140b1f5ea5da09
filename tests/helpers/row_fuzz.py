"""Records whose keys are added, renamed and retyped, and what must have become of each.

Half of them fit: a key with a value of its own kind, where it belongs, in any published spelling.
Those are mostly kept, so that a lost one shows. The others are odd, and mostly rejected.

    PYTHONPATH=tests/helpers python tests/helpers/row_fuzz.py 20000
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
from small_tokenizer import small_tokenizer

from shardkit.conversation import Conversation, Reject
from shardkit.sources import SOURCES, ReadOptions, Unread
from shardkit.tokens import ChatTemplate

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
    printed: list[str] = field(default_factory=list)
    """Texts that a template which prints everything must print, if the row is kept."""
    trained: list[str] = field(default_factory=list)
    """Those of them that are in the loss."""
    silent: list[str] = field(default_factory=list)
    """Texts that must not be in the loss."""


def make(seed: int) -> Case:
    """A changed record: in turn one that fits, and an odd one."""
    return make_fitting(seed) if seed % 2 else make_odd(seed)


def make_odd(seed: int) -> Case:
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


_ROLES = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt", "model", "bot"],
    "tool": ["tool", "observation", "function", "ipython", "tool_response"],
}
_LISTS = ["messages", "conversations", "conversation", "dialog", "turns", "talk"]
_TOOL_TEXT = "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
PRINTS_ALL = (
    _TOOL_TEXT + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that leaves nothing out."""


def make_fitting(seed: int) -> Case:
    """A chat with some known keys where they belong, spelled in one of the published ways."""
    rng = random.Random(seed)
    messages = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    if rng.random() < 0.5:
        messages += [{"role": "tool", "content": "R"}, {"role": "assistant", "content": "A2"}]
    if rng.random() < 0.5:
        messages += [{"role": "user", "content": "Q3"}, {"role": "assistant", "content": "A3"}]
    record: dict[str, Any] = {"messages": messages}
    case = Case("chat", record, "", "")
    for k in range(rng.randrange(1, 4)):
        rng.choice(_CHANGES)(case, rng, f"mark-{seed}-{k}")
    for place in [record, *messages]:
        if rng.random() < 0.2:
            place.setdefault(rng.choice(MEANINGFUL), None)
        if rng.random() < 0.2:
            place.setdefault(f"extra{rng.randrange(5)}", rng.choice([1, "x", ["y"], {"z": 1}]))
    _spell(record, rng)
    return case


def _reasoning(case: Case, rng: random.Random, mark: str) -> None:
    message = _one(case, rng, "assistant")
    if not any(message.get(key) for key in ("reasoning_content", "reasoning", "thinking")):
        message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = mark
        case.printed.append(mark)
        if not _is_silent(message):
            case.trained.append(mark)


def _call(case: Case, rng: random.Random, mark: str) -> None:
    message = _one(case, rng, "assistant")
    arguments: Any = rng.choice([{"x": mark}, json.dumps({"x": mark}), {"x": [{"y": mark}]}])
    call: Any = {"name": "f", "arguments": arguments}
    if message.get("tool_calls") or message.get("function_call"):
        return
    if rng.random() < 0.3:
        message["function_call"] = call
    else:
        calls = [rng.choice([call, {"type": "function", "id": "1", "function": call}])]
        message["tool_calls"] = json.dumps(calls) if rng.random() < 0.2 else calls
    if rng.random() < 0.5 and message["content"] in ("A1", "A2", "A3"):
        message["content"] = rng.choice(["", None])
    case.printed.append(mark)
    if not _is_silent(message):
        case.trained.append(mark)


def _switch(case: Case, rng: random.Random, mark: str) -> None:
    message = _one(case, rng, "assistant")
    said = {"content": message["content"], "calls": message.get("tool_calls")}
    if _is_silent(message) or mark in str(said) or "mark-" in json.dumps(message):
        return
    message["content"] = mark
    message[rng.choice(SWITCHES)] = rng.choice([False, 0, "false"])
    case.printed.append(mark)
    case.silent.append(mark)


def _parts(case: Case, rng: random.Random, mark: str) -> None:
    message = _one(case, rng, rng.choice(["user", "assistant"]))
    if not isinstance(message["content"], str) or message["content"].startswith("mark-"):
        return
    part: dict[str, Any] = {"type": "text", rng.choice(["text", "value"]): mark}
    message["content"] = [{"type": "text", "text": message["content"] + " "}, part]
    case.printed.append(mark)
    if message["role"] == "assistant" and not _is_silent(message):
        is_off = rng.random() < 0.5
        if is_off:
            part[rng.choice(SWITCHES)] = rng.choice([False, 0])
        (case.silent if is_off else case.trained).append(mark)


def _system(case: Case, rng: random.Random, mark: str) -> None:
    messages, record = case.record["messages"], case.record
    if messages[0]["role"] == "system" or any(key in record for key in ("system", "system_prompt")):
        return
    if rng.random() < 0.5:
        record[rng.choice(["system", "system_prompt"])] = mark
    else:
        messages.insert(0, {"role": "system", "content": mark})
    case.printed.append(mark)


def _tools(case: Case, rng: random.Random, mark: str) -> None:
    record, tools = case.record, [{"type": "function", "function": {"name": mark}}]
    if any(place.get(key) for place in (record, *record["messages"]) for key in _TOOLS):
        return
    value = rng.choice([tools, json.dumps(tools), [json.dumps(tools[0])]])
    if rng.random() < 0.3:
        record["functions"] = [{"name": mark}]
    else:
        rng.choice([record, record["messages"][0]])["tools"] = value
    case.printed.append(mark)


def _result(case: Case, rng: random.Random, mark: str) -> None:
    for message in case.record["messages"]:
        if message["role"] == "tool" and not message["content"].startswith("mark-"):
            message["content"] = mark
            case.printed.append(mark)


_TOOLS = ("tools", "functions")
_CHANGES: list[Callable[[Case, random.Random, str], None]] = [
    *(_reasoning, _call, _switch, _parts, _system, _tools, _result)
]


def _one(case: Case, rng: random.Random, role: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [m for m in case.record["messages"] if m["role"] == role]
    return rng.choice(found)


def _is_silent(message: dict[str, Any]) -> bool:
    return any(message.get(key) in (False, 0, "false") for key in SWITCHES if key in message)


def _spell(record: dict[str, Any], rng: random.Random) -> None:
    """Other words for the list, for roles, and for who and what."""
    messages = record.pop("messages")
    for message in messages:
        message["role"] = rng.choice(_ROLES[message["role"]])
    if rng.random() < 0.5:
        for message in messages:
            message["from"], message["value"] = message.pop("role"), message.pop("content")
    record[rng.choice(_LISTS)] = messages


def not_printed(case: Case, found: Conversation) -> str | None:
    """What is wrong with how a kept row is rendered; None where nothing is."""
    rendered = _prints_all().render(found)
    if isinstance(rendered, Reject):
        return None if rendered.detail else f"no reason given: {case}"
    text = rendered.text
    loss = "\0".join(text[a:b] for a, b in rendered.spans)
    missing = [mark for mark in case.printed if mark not in text]
    missing += [mark for mark in case.trained if mark not in loss]
    if missing:
        return f"lost {missing}: {case.record} -> {text!r}, loss {loss!r}"
    wrong = [mark for mark in case.silent if mark in loss]
    return f"trained all the same {wrong}: {case.record} -> {loss!r}" if wrong else None


@cache
def _prints_all() -> ChatTemplate:
    return ChatTemplate.of_text(PRINTS_ALL, small_tokenizer(), "all.jinja")


def lost(case: Case) -> str | None:
    """What is wrong with how the record was read; None where nothing was lost."""
    unread = Unread()
    found = SOURCES[case.kind].read(case.record, ReadOptions(), unread)
    if isinstance(found, Reject):
        return None if found.detail else f"no reason given: {case}"
    if case.printed or not case.key:
        return not_printed(case, found)
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


def main(n: int) -> int:
    """Try n records; how many were kept, by sort, and what was lost of them."""
    counts: Counter[str] = Counter()
    for seed in range(n):
        case = make(seed)
        found = SOURCES[case.kind].read(case.record, ReadOptions())
        sort = "fitting" if seed % 2 else "odd"
        is_kept = not isinstance(found, Reject)
        if not isinstance(found, Reject) and seed % 2:
            is_kept = not isinstance(_prints_all().render(found), Reject)
        counts[f"{sort}, {'kept' if is_kept else 'rejected'}"] += 1
        problem = lost(case)
        if problem:
            counts["LOST"] += 1
            print(problem)
    print(dict(sorted(counts.items())))
    return 1 if counts["LOST"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
