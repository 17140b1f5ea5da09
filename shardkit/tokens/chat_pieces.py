"""How does a conversation become pieces under a chat template?

The template prints the whole conversation; the text is one piece, cut only at images. Its
supervised characters go along, and become tokens in `masks.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, Conversation, Message, Reject
from shardkit.tokens.chat import ChatTemplate
from shardkit.tokens.chat_jinja import Span
from shardkit.tokens.pieces import IMAGE, N_CONSTANTS, Pieces, mismatch, shielded

_SUPERVISED = 1


class ChatPieces:
    """Adds conversations to `Pieces` under one chat template."""

    def __init__(self, template: ChatTemplate, shield: Callable[[str], str] | None = None) -> None:
        self._template = template
        self._shield = shield

    def add(self, conversation: Conversation, pieces: Pieces) -> Reject | None:
        """Add the conversation's pieces, or give the reason why it has none."""
        if self._shield is not None:
            conversation = _hidden(conversation, self._shield)
        rendered = self._template.render(conversation)
        if isinstance(rendered, Reject):
            return rendered
        parts = rendered.text.split(IMAGE_MARK) if conversation.images else [rendered.text]
        if len(parts) - 1 != len(conversation.images):
            return mismatch(len(parts) - 1, len(conversation.images))
        start = 0
        for k, part in enumerate(parts):
            if k:
                pieces.add_constant(IMAGE)
                start += len(IMAGE_MARK)
            pieces.spans[len(pieces.texts)] = _clipped(rendered.spans, start, start + len(part))
            pieces.add_constant(N_CONSTANTS + len(pieces.texts), supervised=_SUPERVISED)
            pieces.texts.append(part)
            start += len(part)
        return None


def _clipped(spans: tuple[Span, ...], start: int, end: int) -> tuple[Span, ...]:
    """The spans inside start:end, counted from `start`."""
    cut = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
    return tuple((a, b) for a, b in cut if a < b)


def _hidden(conversation: Conversation, shield: Callable[[str], str]) -> Conversation:
    """The conversation with the look-alikes of markers hidden in all that the record wrote."""

    def hide(value: object) -> object:
        if isinstance(value, str):
            return shield(value)
        if isinstance(value, dict):
            return {hide(key): hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [hide(item) for item in value]
        return value

    def hide_message(message: Message) -> Message:
        name = None if message.name is None else shield(message.name)
        calls = tuple(hide(call) for call in message.tool_calls)
        text = shielded(message.text, shield, keeps_marks=bool(conversation.images))
        return replace(message, text=text, tool_calls=calls, name=name)

    return replace(
        conversation,
        messages=tuple(map(hide_message, conversation.messages)),
        tools=tuple(hide(tool) for tool in conversation.tools),
    )
