"""The source formats: how a record of each becomes a conversation.

Rules and their sources: XTuner's map functions (alpaca, llava, wizardlm, openai, pretrain), whose
results these equal, and LLaMA-Factory's columns (`history`, `images`, `tools`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, Conversation, Exchange, Message, Reason, Reject
from shardkit.sources.exchanges import ALPACA, MESSAGES, NO_OUTPUT, SHAREGPT, PlainRows
from shardkit.sources.fields import (
    BadField,
    as_list,
    as_object,
    as_text,
    image_list,
    optional_text,
    record_id,
    text,
)
from shardkit.sources.tables import as_ints
from shardkit.sources.turns import from_value_messages, openai_messages


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the user says about all records."""

    system: str | None = None
    """A system message for conversations that have none."""


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """One raw format."""

    name: str
    fields: str
    """What a record holds, for documents and error messages."""
    looks_like: Callable[[object], bool]
    convert: Callable[[object], Conversation]
    plain: PlainRows | None = None
    """Its plainest rows: one question and one answer. They are read more quickly."""

    def read(self, record: object, options: ReadOptions) -> Conversation | Reject:
        """The record's conversation, or the reason why it has none."""
        try:
            conversation = self.convert(record)
        except BadField as err:
            return err.reject
        if conversation.kind != "chat":
            return conversation
        if options.system:
            conversation = _with_system(conversation, options.system)
        return _checked(conversation)

    def read_all(
        self, records: Sequence[object | Reject], options: ReadOptions
    ) -> list[Conversation | Exchange | Reject]:
        """The same for many records at once; what is a Reject already stays one."""
        if self.plain is None or options.system:
            return [self._read_one(record, options) for record in records]
        exchange = self.plain.converted
        return [exchange(record) or self._read_one(record, options) for record in records]

    def read_plain(
        self, rows: Sequence[msgspec.Struct], plain: PlainRows
    ) -> list[Conversation | Exchange | Reject]:
        """The same for rows that were decoded as `plain` says, without a system message."""
        found = list(map(plain.exchange, rows))
        if all(found):
            return found  # type: ignore[return-value]
        return [
            one or self.read(msgspec.json.decode(msgspec.json.encode(row)), ReadOptions())
            for one, row in zip(found, rows, strict=True)
        ]

    def _read_one(self, record: object | Reject, options: ReadOptions) -> Conversation | Reject:
        return record if isinstance(record, Reject) else self.read(record, options)


def _with_system(conversation: Conversation, system: str) -> Conversation:
    messages = conversation.messages
    if any(message.role == "system" for message in messages):
        return conversation
    return replace(conversation, messages=(Message("system", system), *messages))


def _checked(conversation: Conversation) -> Conversation | Reject:
    """What every format demands of a chat: an answer, and one image for each mark."""
    for message in reversed(conversation.messages):
        if message.role == "assistant":
            break
    else:
        n_messages = len(conversation.messages)
        return Reject(Reason.NO_ANSWER, f"{n_messages} messages, none of the assistant")
    n_images = len(conversation.images)
    if n_images:
        n_marks = sum(message.text.count(IMAGE_MARK) for message in conversation.messages)
        if n_marks != n_images:
            detail = f"{n_marks} placeholders, {n_images} images"
            return Reject(Reason.PLACEHOLDER_MISMATCH, detail)
    return conversation


def _has(*keys: str) -> Callable[[object], bool]:
    return lambda record: isinstance(record, dict) and all(key in record for key in keys)


def _read_alpaca(record: object) -> Conversation:
    """Instruction, a newline, the input (also when it is empty): no strip, as XTuner."""
    fields = as_object(record, "$")
    prompt = text(fields, "instruction") + "\n" + (optional_text(fields, "input") or "")
    answer = text(fields, "output")
    if answer == NO_OUTPUT:
        raise BadField("$.output", "is <nooutput>", Reason.NO_OUTPUT)
    messages = []
    system = optional_text(fields, "system")
    if system:
        messages.append(Message("system", system))
    for i, item in enumerate(as_list(fields.get("history") or [], "$.history")):
        pair = as_list(item, f"$.history[{i}]")
        if len(pair) != 2:
            raise BadField(f"$.history[{i}]", f"expected a pair, found {len(pair)} values")
        question, reply = (as_text(pair[k], f"$.history[{i}][{k}]") for k in range(2))
        messages += [Message("user", question), Message("assistant", reply)]
    messages += [Message("user", prompt), Message("assistant", answer)]
    return Conversation(tuple(messages), id=record_id(fields))


def _read_llava(record: object) -> Conversation:
    fields = as_object(record, "$")
    images = image_list(fields, ("image", "images"))
    messages = llava_messages(fields, len(images))
    n_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    if n_marks != len(images):
        detail = f"{n_marks} placeholders, {len(images)} images"
        raise BadField("$", detail, Reason.PLACEHOLDER_MISMATCH)
    system = optional_text(fields, "system_prompt") or optional_text(fields, "system")
    if system:
        messages.insert(0, Message("system", system))
    return Conversation(tuple(messages), images=images, id=record_id(fields))


def llava_messages(fields: Mapping[str, object], n_images: int) -> list[Message]:
    """The messages with XTuner's rule: a turn's placeholder moves to its front, on its own line.

    With one image, several placeholders in one turn are that one image. With more images, a turn
    that has several placeholders keeps them where they are (XTuner cannot have this).
    """
    messages = from_value_messages(fields)
    return [_image_first(message, n_images) for message in messages] if n_images else messages


def _image_first(message: Message, n_images: int) -> Message:
    n_marks = message.text.count(IMAGE_MARK)
    if message.role != "user" or not n_marks or (n_marks > 1 and n_images > 1):
        return message
    words = message.text.replace(IMAGE_MARK, "").strip()
    return replace(message, text=f"{IMAGE_MARK}\n{words}".strip())


def _read_sharegpt(record: object) -> Conversation:
    fields = as_object(record, "$")
    messages = from_value_messages(fields)
    system = optional_text(fields, "system") or optional_text(fields, "system_prompt")
    if system:
        messages.insert(0, Message("system", system))
    return Conversation(tuple(messages), id=record_id(fields), tools=_tools(fields))


def _read_messages(record: object) -> Conversation:
    fields: Mapping[str, object] = {}
    if isinstance(record, list):
        items, path = record, "$"
    else:
        fields = as_object(record, "$")
        key = "messages" if "messages" in fields else "dialogs"
        path = f"$.{key}"
        items = as_list(fields.get(key), path)
    messages, images = openai_messages(items, path)
    images = images or list(image_list(fields, ("images", "image")))
    return Conversation(
        tuple(messages), images=tuple(images), id=record_id(fields), tools=_tools(fields)
    )


def _tools(fields: Mapping[str, object]) -> tuple[object, ...]:
    """Tool definitions: a list, or the same as JSON text."""
    tools = fields.get("tools")
    if tools is None or tools == "":
        return ()
    if isinstance(tools, str):
        try:
            tools = msgspec.json.decode(tools)
        except msgspec.DecodeError as err:
            raise BadField("$.tools", f"not JSON: {err}") from None
    return tuple(as_list(tools, "$.tools"))


def _read_text(record: object) -> Conversation:
    """White space around the text is removed, as XTuner's pretrain_map_fn does."""
    fields = as_object(record, "$")
    key = "text" if "text" in fields else "content"
    words = text(fields, key).strip()
    if not words:
        raise BadField(f"$.{key}", "is empty", Reason.EMPTY_TEXT)
    return Conversation((Message("assistant", words),), id=record_id(fields), kind="text")


def _read_tokenized(record: object) -> Conversation:
    fields = as_object(record, "$")
    ids, labels = _ints(fields, "input_ids"), _ints(fields, "labels")
    if len(ids) != len(labels):
        detail = f"{len(labels)} labels for {len(ids)} input_ids"
        raise BadField("$.labels", detail, Reason.BAD_TOKENS)
    cuts = _ints(fields, "cumulative_len") if fields.get("cumulative_len") is not None else ()
    images = image_list(fields, ("image", "images"))
    return Conversation(
        (), images=images, id=record_id(fields), kind="tokens", ids=ids, labels=labels, cuts=cuts
    )


def _ints(fields: Mapping[str, object], key: str) -> tuple[int, ...]:
    try:
        return as_ints(fields.get(key))
    except (TypeError, ValueError, OverflowError):
        raise BadField(f"$.{key}", "expected a list of integers", Reason.BAD_TOKENS) from None


def _looks_like_llava(record: object) -> bool:
    if not (isinstance(record, dict) and isinstance(record.get("conversations"), list)):
        return False
    return "image" in record or "images" in record


def _looks_like_text(record: object) -> bool:
    if not isinstance(record, dict) or "instruction" in record:
        return False
    return isinstance(record.get("text"), str) or isinstance(record.get("content"), str)


SOURCES: dict[str, SourceFormat] = {
    source.name: source
    for source in [
        SourceFormat(
            "tokenized",
            "`input_ids`, `labels`; optional `cumulative_len`, `image`",
            _has("input_ids", "labels"),
            _read_tokenized,
        ),
        SourceFormat(
            "alpaca",
            "`instruction`, `output`; optional `input`, `system`, `history`",
            _has("instruction", "output"),
            _read_alpaca,
            ALPACA,
        ),
        SourceFormat(
            "llava",
            "`conversations` of `from` and `value` with `<image>`; `image`: a path, a list or null",
            _looks_like_llava,
            _read_llava,
        ),
        SourceFormat(
            "sharegpt",
            "`conversations` of `from` and `value`; optional `system`, `tools`",
            lambda r: isinstance(r, dict) and isinstance(r.get("conversations"), list),
            _read_sharegpt,
            SHAREGPT,
        ),
        SourceFormat(
            "messages",
            "`messages` of `role` and `content` (text or parts), or a bare list of them; "
            "optional `tools`, `images`; `loss` per message",
            lambda r: (
                isinstance(r, list)
                or (isinstance(r, dict) and isinstance(r.get("messages", r.get("dialogs")), list))
            ),
            _read_messages,
            MESSAGES,
        ),
        SourceFormat("text", "`text` (or `content`)", _looks_like_text, _read_text),
    ]
}
"""Every source format by name; `auto` takes the first one that all sampled records look like."""
