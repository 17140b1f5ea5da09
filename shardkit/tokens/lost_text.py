"""Is everything that a sample trains on in the text that a template printed?

A template prints what it was written for. What it was not written for (reasoning, a second call)
it leaves out without a word, and the model would be trained on the rest. So every text that is
trained on, and every result of a tool, is looked for in what was printed: white space counts as one
space, and escapes of JSON and HTML may be there or not.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import msgspec

_ESCAPES = re.compile(r'\\(?:(["\'\\/bfnrt])|u([0-9a-fA-F]{4}))')
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SHOWN = 60


@dataclass(frozen=True)
class Printed:
    """A text that a template printed, ready to be searched."""

    text: str

    def has(self, words: str) -> bool:
        """Were the words printed, whatever their white space and escapes?"""
        bare = words.strip()
        if not bare or bare in self.text:
            return True
        plain = _collapsed(bare)
        if plain in self._plain or plain in self._unescaped:
            return True
        return _collapsed(unescaped(bare)) in self._unescaped

    def has_value(self, value: object) -> bool:
        """Was a scalar of JSON printed, as JSON or as Python writes it?"""
        if isinstance(value, str):
            return self.has(value)
        return any(self.has(form) for form in (json.dumps(value), str(value)))

    @cached_property
    def _plain(self) -> str:
        return _collapsed(self.text)

    @cached_property
    def _unescaped(self) -> str:
        return _collapsed(unescaped(self.text))


def unescaped(text: str) -> str:
    """The text without the escapes of JSON strings and of HTML."""
    return html.unescape(_ESCAPES.sub(_unescape, text)) if "\\" in text or "&" in text else text


def _unescape(match: re.Match[str]) -> str:
    if match.group(2):
        return chr(int(match.group(2), 16))
    return _ESCAPED.get(match.group(1), match.group(1))


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def shown(text: str) -> str:
    """The beginning of a text, for a message."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def find_lost(
    text: str,
    messages: Sequence[Mapping[str, object]],
    wanted: Sequence[int],
    spans: Sequence[tuple[int, int]],
    notes: Counter[str],
    header: int,
) -> str | None:
    """What the text lacks of the `wanted` messages and of tools' results; None when nothing.

    A wanted message is looked for in its own span, and in the `header` characters before it, which
    a prompt may have printed; where spans are not one for each, in all of them. Other messages that
    were left out are counted in `notes`.
    """
    whole = Printed(text)
    is_matched = len(spans) == len(wanted)
    every = whole if is_matched else Printed(" ".join(text[a:b] for a, b in spans))
    before = 0
    for k, i in enumerate(wanted):
        printed = every
        if is_matched:
            start, end = spans[k]
            printed, before = Printed(text[max(before, start - header) : end]), end
        lost = _lost_of(messages[i], printed)
        if lost is not None:
            return f"the template does not print all of message {i}: {lost}"
    for i, message in enumerate(messages):
        if i in wanted:
            continue
        lost = _lost_of(message, whole)
        if lost is None:
            continue
        if message["role"] == "tool":
            return f"the template does not print all of message {i}, of a tool: {lost}"
        notes["history_dropped"] += 1
    return None


def _lost_of(message: Mapping[str, object], printed: Printed) -> str | None:
    content = message["content"]
    if len(message) == 2 and isinstance(content, str) and content.strip() in printed.text:
        return None  # role and content, as most messages
    parts = content if isinstance(content, list) else [{"text": content}]
    for part in parts:
        words = part.get("text")
        if isinstance(words, str) and not printed.has(words):
            return f"its words {shown(words)}"
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and not printed.has(reasoning):
        return f"its reasoning {shown(reasoning)}"
    calls = message.get("tool_calls")
    return lost_of_calls(calls, printed) if isinstance(calls, list) else None


def lost_of_calls(calls: Sequence[object], printed: Printed) -> str | None:
    """What of tool calls was not printed; None when all was."""
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(inner, Mapping):
            continue
        for value in [inner.get("name"), *_leaves(inner.get("arguments"))]:
            if value is not None and not printed.has_value(value):
                return f"the call of {inner.get('name')!r}: {shown(str(value))}"
    return None


def _leaves(value: object) -> Iterator[object]:
    """The keys and scalars in a value; a text that is a JSON object is looked into too."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            value = msgspec.json.decode(value)
    yield from _parts(value)


def _parts(value: object) -> Iterator[object]:
    """In order; not by recursion, which a value that was decoded may be nested too deep for."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, Mapping):
            rest += [part for pair in reversed([*one.items()]) for part in reversed(pair)]
        elif isinstance(one, list | tuple):
            rest += reversed(one)
        elif one is not None:
            yield one
