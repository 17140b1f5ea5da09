"""What does a chat template get to see of a conversation?

Every key of a message as the record has it. What transformers does to messages before it renders
them is done here too: reasoning is there as `reasoning_content` and as `thinking`. Whether content
goes in as one string or as a list of parts, whether calls are printed and with arguments of which
form, a template is asked once: it renders a few probes, and what comes out answers (`Form`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import jinja2
import msgspec

from shardkit.conversation import IMAGE_MARK, Conversation, Message, Reason, Reject, Role

Dict = dict[str, object]
"""A message as a template sees it."""

Render = Callable[..., str]
"""(messages, tools=None, prompt=False) -> text."""

FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""What a template may raise on a conversation that it does not take."""

QUESTION = "What is the first question?"
ANSWER = "This is the first answer."
_WORDS = [QUESTION, ANSWER]
_SYSTEM = "These are the instructions."
_RESULT = "Seventeen degrees."
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "Finds the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A city."}},
            "required": ["city"],
        },
    },
}
_NOT_ANSWERS = frozenset(get_args(Role)) - {"assistant"}
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names of reasoning in transformers' order: the first that a message has is its
`reasoning_content`, and its `thinking` too where it has no such key."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a template takes, as its probes showed."""

    text_roles: frozenset[str] = frozenset({"system", "user", "assistant", "tool"})
    """Roles whose content may be a string."""
    part_roles: frozenset[str] = frozenset()
    """Roles whose content may be a list of parts."""
    image_text: str | None = None
    """What the template prints where an image part stands; None: it takes no image parts."""
    prints_calls: bool = False
    takes_objects: bool = True
    """Whether the arguments of a call may be an object; else they are JSON text."""

    @property
    def takes_system(self) -> bool:
        """Whether a system message is printed."""
        return "system" in self.text_roles or "system" in self.part_roles


def find_form(render: Render) -> Form | None:
    """The form that a template takes; None when it prints no plain question and answer."""
    forms = {"user": _either(QUESTION), "assistant": _either(ANSWER)}
    works = [
        (asked, answered)
        for asked, answered in product(*forms.values())
        if _prints(render, [_message("user", asked), _message("assistant", answered)], _WORDS)
    ]
    if not works:
        return None
    asked, answered = (_message(*pair) for pair in zip(forms, works[0], strict=True))
    taken = {("user", type(pair[0])) for pair in works}
    taken |= {("assistant", type(pair[1])) for pair in works}
    for content in _either(_SYSTEM):
        if _prints(render, [_message("system", content), asked, answered], [_SYSTEM, *_WORDS]):
            taken.add(("system", type(content)))
    prints_calls, takes_objects = _calls_form(render, asked, answered, taken)
    return Form(
        text_roles=frozenset(role for role, kind in taken if kind is str),
        part_roles=frozenset(role for role, kind in taken if kind is list),
        image_text=_image_text(render, answered) if ("user", list) in taken else None,
        prints_calls=prints_calls,
        takes_objects=takes_objects,
    )


def _message(role: str, content: object) -> Dict:
    return {"role": role, "content": content}


def _either(text: str) -> tuple[object, object]:
    return text, [{"type": "text", "text": text}]


def _prints(render: Render, messages: list[Dict], words: list[str], tools: object = None) -> bool:
    """Are the words of the probes printed, as words and not as Python's or JSON's lists?"""
    try:
        text = render(messages, tools)
    except FAILURES:
        return False
    is_list = "'type': 'text'" in text or '"type": "text"' in text
    return all(word in text for word in words) and not is_list


def _calls_form(
    render: Render, asked: Dict, answered: Dict, taken: set[tuple[str, type]]
) -> tuple[bool, bool]:
    """(are calls printed, may arguments be an object); roles of tools are added to `taken`."""
    for arguments in ({"city": "Oslo"}, '{"city": "Oslo"}'):
        call = {
            "id": "call00001",
            "type": "function",
            "function": {"name": "find_weather", "arguments": arguments},
        }
        caller: Dict = {"role": "assistant", "content": "", "tool_calls": [call]}
        for tools, content in product((None, [_TOOL]), _either(_RESULT)):
            result: Dict = {"role": "tool", "name": "find_weather", "content": content}
            result["tool_call_id"] = "call00001"
            talk = [asked, caller, result, answered]
            if _prints(render, talk, [_RESULT, ANSWER], tools):
                taken.add(("tool", type(content)))
            if _prints_call(render, [asked, caller], tools):
                return True, isinstance(arguments, dict)
    return False, True


def _prints_call(render: Render, talk: list[Dict], tools: object) -> bool:
    try:
        text = render(talk, tools)
        others = render([*talk[:-1], _message("assistant", "")], tools)
    except FAILURES:
        return False
    return all(text.count(word) > others.count(word) for word in ("find_weather", "Oslo"))


def _image_text(render: Render, answered: Dict) -> str | None:
    words = {"type": "text", "text": QUESTION}
    try:
        without = render([_message("user", [words]), answered])
        text = render([_message("user", [{"type": "image"}, words]), answered])
    except FAILURES:
        return None
    start = common(text, without)
    end = len(text) - (len(without) - start)
    return text[start:end] if text[end:] == without[start:] and end > start else None


def common(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    n = min(len(first), len(second))
    if first[:n] == second[:n]:
        return n
    low, high = 0, n
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle)
    return low


def as_dicts(
    messages: Sequence[Message],
    form: Form,
    *,
    marks: frozenset[str] = frozenset(),
    raw_calls: bool = False,
    notes: Counter[str] | None = None,
) -> list[Dict]:
    """The messages as the template takes them.

    `marks`: the roles in whose text IMAGE_MARK is an image, where the conversation has images.
    `raw_calls`: leave tool calls as the record writes them. `notes` counts what was changed.
    """
    counts = Counter[str]() if notes is None else notes
    return [
        _as_dict(message, form, message.role in marks, raw_calls, counts) for message in messages
    ]


def _as_dict(
    message: Message, form: Form, has_images: bool, raw_calls: bool, notes: Counter[str]
) -> Dict:
    text, calls = message.text, message.tool_calls
    if message.call_text and (raw_calls or not form.prints_calls):
        text, calls = message.call_text, ()
    value: Dict = {"role": message.role, "content": _content(message, text, form, has_images)}
    if calls:
        if message.call_text:
            notes["calls_from_text"] += 1
        is_normal = form.takes_objects and not raw_calls
        value["tool_calls"] = (
            [normal_call(call, notes) for call in calls] if is_normal else [*calls]
        )
    if message.name is not None:
        value["name"] = message.name
    if not message.fields:
        return value
    value |= message.fields
    reasoning = next((value[key] for key in _REASONING if value.get(key) is not None), None)
    if reasoning is None:
        return value
    return {"thinking": reasoning, **value, "reasoning_content": reasoning}


def _content(message: Message, text: str, form: Form, has_images: bool) -> object:
    """A string, or parts where the record has parts, where images stand, or nothing else goes."""
    has_marks = has_images and IMAGE_MARK in text
    takes_parts = message.role in form.part_roles
    if has_marks:
        wants_parts = takes_parts and form.image_text is not None
    else:
        wants_parts = takes_parts and (bool(message.parts) or message.role not in form.text_roles)
    if not wants_parts:
        return text
    if message.parts and text is message.text:
        return [
            {"type": "image"} if part.text is None else {"type": "text", "text": part.text}
            for part in message.parts
        ]
    parts: list[object] = []
    for k, words in enumerate(text.split(IMAGE_MARK) if has_marks else [text]):
        parts += [{"type": "image"}] if k else []
        parts += [{"type": "text", "text": words}] if words or not has_marks else []
    return parts


def normal_call(call: object, notes: Counter[str]) -> object:
    """The call, its arguments an object where the record has the JSON text of one."""
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function")
    if isinstance(inner, Mapping):
        changed = normal_call(inner, notes)
        return call if changed is inner else {**call, "function": changed}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return call
    if not isinstance(parsed, dict):
        return call
    notes["arguments_parsed"] += 1
    return {**call, "arguments": parsed}


def marked_roles(conversation: Conversation) -> frozenset[str] | Reject:
    """The roles in whose text IMAGE_MARK is an image: those of questions, or answers too.

    An answer that says `<image>` in words is text as long as the questions' marks are all images.
    """
    n_images = len(conversation.images)
    if not n_images:
        return frozenset()
    messages = conversation.messages
    asked = sum(m.text.count(IMAGE_MARK) for m in messages if m.role != "assistant")
    if asked == n_images:
        return _NOT_ANSWERS
    marked = sum(m.text.count(IMAGE_MARK) for m in messages)
    if marked == n_images:
        return frozenset(get_args(Role))
    detail = f"{marked} {IMAGE_MARK} in the text, {n_images} images"
    return Reject(Reason.PLACEHOLDER_MISMATCH, detail)
