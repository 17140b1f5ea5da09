"""Lists of {from, value} and {role, content} become messages."""

from __future__ import annotations

from collections.abc import Mapping

from shardkit.conversation import IMAGE_MARK, Message, Reason, Role
from shardkit.sources.fields import BadField, as_list, as_object, as_text, image_path

FROM: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def from_value_messages(record: Mapping[str, object]) -> list[Message]:
    """The messages of a `conversations` list of {from, value} (or {role, content})."""
    messages = []
    for i, item in enumerate(as_list(record.get("conversations"), "$.conversations")):
        path = f"$.conversations[{i}]"
        turn = as_object(item, path)
        who = as_text(turn.get("from", turn.get("role")), f"{path}.from")
        role = FROM.get(who)
        if role is None:
            raise BadField(f"{path}.from", f"unknown role {who!r}", Reason.UNKNOWN_ROLE)
        value = turn["value"] if "value" in turn else turn.get("content")
        messages.append(Message(role, as_text(value, f"{path}.value")))
    return messages


def openai_messages(items: list[object], path: str) -> tuple[list[Message], list[str]]:
    """The messages of an OpenAI list, and the images that its content parts name."""
    messages: list[Message] = []
    images: list[str] = []
    for i, item in enumerate(items):
        where = f"{path}[{i}]"
        turn = as_object(item, where)
        who = as_text(turn.get("role"), f"{where}.role")
        role = ROLES.get(who)
        if role is None:
            raise BadField(f"{where}.role", f"unknown role {who!r}", Reason.UNKNOWN_ROLE)
        calls = tuple(as_list(turn.get("tool_calls") or [], f"{where}.tool_calls"))
        content = turn.get("content")
        if content is None and calls:
            content = ""
        name = turn.get("name")
        messages.append(
            Message(
                role,
                _content(content, f"{where}.content", images),
                supervised=_has_loss(turn, where),
                tool_calls=calls,
                name=name if isinstance(name, str) else None,
            )
        )
    return messages, images


def _content(content: object, path: str, images: list[str]) -> str:
    """A string, or the text of content parts with a mark for each image."""
    if not isinstance(content, list):
        return as_text(content, path)
    texts = []
    for i, item in enumerate(content):
        where = f"{path}[{i}]"
        part = as_object(item, where)
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            texts.append(as_text(part.get("text", part.get("value")), f"{where}.text"))
        elif kind in ("image_url", "image", "input_image"):
            images.append(image_path(part, where))
            texts.append(IMAGE_MARK)
        else:
            raise BadField(f"{where}.type", f"unknown content part {kind!r}")
    return "".join(texts)


def _has_loss(turn: Mapping[str, object], where: str) -> bool:
    """XTuner's `loss` (a bool, or "true" / "false" as text) and LLaMA-Factory's `loss_weight`."""
    loss = turn.get("loss")
    if isinstance(loss, str) and loss.lower() in ("true", "false"):
        return loss.lower() == "true"
    if isinstance(loss, bool):
        return loss
    if loss is not None:
        raise BadField(f"{where}.loss", f"expected true or false, found {loss!r}")
    weight = turn.get("loss_weight")
    if weight is None or weight == 1:
        return True
    if weight == 0:
        return False
    raise BadField(f"{where}.loss_weight", f"only 0 and 1 are supported, found {weight!r}")
