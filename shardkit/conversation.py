"""What a record becomes before it is tokens: a conversation, or a reason to reject it.

A pack makes millions of conversations. They are msgspec structs, which are made several times
faster than frozen dataclasses, and hold no cycles for the collector to look for (`gc=False`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

IMAGE_MARK = "<image>"
"""Where an image stands in the text of a message."""

Role = Literal["system", "user", "assistant", "tool"]
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold the assistant's reasoning."""


class Reason(StrEnum):
    """Why a row was not kept. A closed list: docs/reference/reject-reasons.md is made from it."""

    BAD_JSON = "bad_json"
    BAD_RECORD = "bad_record"
    UNSUPPORTED_FIELD = "unsupported_field"
    DUPLICATE = "duplicate"
    UNKNOWN_ROLE = "unknown_role"
    NO_ANSWER = "no_answer"
    NO_OUTPUT = "no_output"
    EMPTY_TEXT = "empty_text"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"
    TEMPLATE_FAILED = "template_failed"
    TEMPLATE_LOST_TEXT = "template_lost_text"
    TOO_LONG = "too_long"
    BAD_TOKENS = "bad_tokens"
    PLACEHOLDER_MISMATCH = "placeholder_mismatch"
    TOO_MANY_IMAGES = "too_many_images"
    IMAGE_MISSING = "image_missing"
    IMAGE_OUTSIDE_ROOT = "image_outside_root"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_LONG = "image_too_long"
    IMAGE_REFUSED = "image_refused"

    @property
    def meaning(self) -> str:
        """One sentence for documents and tables."""
        return _MEANINGS[self]


_MEANINGS: dict[Reason, str] = {
    Reason.BAD_JSON: "The row is not valid JSON.",
    Reason.BAD_RECORD: "A field that the format needs is missing or has the wrong type.",
    Reason.UNSUPPORTED_FIELD: "A field that changes the meaning is not understood here; "
    "--ignore-field NAME drops it.",
    Reason.DUPLICATE: "The same record, with the same images, stands earlier in the input.",
    Reason.UNKNOWN_ROLE: "A message has a role that the format or template does not know.",
    Reason.NO_ANSWER: "The conversation has no assistant message.",
    Reason.NO_OUTPUT: "The record's output is the literal <nooutput>.",
    Reason.EMPTY_TEXT: "The text is empty.",
    Reason.NO_SUPERVISED_TOKENS: "No token with a label is left after masking and truncation.",
    Reason.TEMPLATE_FAILED: "The chat template refused the conversation.",
    Reason.TEMPLATE_LOST_TEXT: "The template leaves out something that the row trains on, or a "
    "tool's result.",
    Reason.TOO_LONG: "Longer than max_length, and the truncation rule rejects such rows.",
    Reason.BAD_TOKENS: "Tokenized input: ids and labels that do not fit together.",
    Reason.PLACEHOLDER_MISMATCH: "The number of <image> placeholders is not the number of images.",
    Reason.TOO_MANY_IMAGES: "More images in one row than --max-images.",
    Reason.IMAGE_MISSING: "The image file does not exist below --image-root.",
    Reason.IMAGE_OUTSIDE_ROOT: "The image path leaves --image-root.",
    Reason.IMAGE_UNREADABLE: "The image file cannot be decoded.",
    Reason.IMAGE_TOO_LARGE: "The image is beyond the decompression-bomb limit, 512 MiB, or "
    "65,535 pixels on an edge.",
    Reason.IMAGE_TOO_LONG: "The image is more tokens than --max-length, and is never cut.",
    Reason.IMAGE_REFUSED: "The processor takes no image of this size: it is hundreds of times as "
    "long as wide, for one.",
}


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not kept: the reason, and what exactly was found."""

    reason: Reason
    detail: str = ""
    piece: int | None = None
    """Which piece of the row was lost, where it was split into several samples."""


class EmbeddedImage(msgspec.Struct, frozen=True, gc=False):
    """An image that came inside its record: a cell of a table, a data URL, base64."""

    name: str
    """What the record calls it, or the beginning of its digest."""
    data: bytes
    """Encoded, as a JPEG or PNG file is."""


ImageRef = str | EmbeddedImage
"""An image of a record: its path below --image-root, or its bytes."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """One part of a message that was written as a list of parts."""

    text: str | None = None
    """None: an image, the next one of the conversation's."""
    supervised: bool = True
    """False: no loss on this part of an assistant message."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message. `text` holds IMAGE_MARK where an image stands."""

    role: Role
    text: str
    supervised: bool = True
    """False: no loss on this assistant message, nor on any part of it."""
    tool_calls: tuple[object, ...] = ()
    """JSON objects as the record writes them; only a tokenizer's own template reads them."""
    name: str | None = None
    call_text: str = ""
    """The calls as text, of a turn that is a call (`function_call`): `text` is empty then, and a
    template that prints no `tool_calls` prints this in its place."""
    parts: tuple[Part, ...] = ()
    """The content as parts, where the record has a list of them; joined, they are `text`."""
    fields: dict[str, object] = {}
    """All other keys of the message as the record has them, for templates: `reasoning_content`,
    `thinking`, `tool_call_id`, ...; without role, content and the switches of the loss."""

    @property
    def reasoning_key(self) -> str | None:
        """The key of `fields` that holds what the assistant thought before its answer."""
        return next((key for key in REASONING if self.fields.get(key)), None)

    @property
    def reasoning(self) -> str | None:
        """What the assistant thought before its answer, whatever the record calls it."""
        key = self.reasoning_key
        return str(self.fields[key]) if key is not None else None

    @property
    def has_switched_parts(self) -> bool:
        """Whether some parts of a supervised message are without loss."""
        return self.supervised and not all(part.supervised for part in self.parts)


class Conversation(msgspec.Struct, frozen=True, gc=False):
    """The turns of one record with its image references, in reading order."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    """One per IMAGE_MARK: paths as the record names them, or bytes."""
    id: str | None = None
    kind: Literal["chat", "text", "tokens"] = "chat"
    """`text`: one assistant message, all of it supervised (pretraining). `tokens`: no messages,
    but `ids` and `labels` as the record has them."""
    tools: tuple[object, ...] = ()
    ids: tuple[int, ...] = ()
    """Only for kind `tokens`: input_ids as they are."""
    labels: tuple[int, ...] = ()
    """Only for kind `tokens`: the label of each id."""
    cuts: tuple[int, ...] = ()
    """Only for kind `tokens`: where the segments of an already packed row begin and end."""
    n_prompt: int = 0
    """Of a row of the tasks `preference` and `kto`: the messages of its prompt; the (chosen) answer
    is those behind it."""
    rejected: tuple[Message, ...] = ()
    """The rejected answer to the prompt, of a row of the task `preference`."""
    label: bool | None = None
    """Whether the answer is a good one, of a row of the task `kto`; None for other rows."""


class Exchange(msgspec.Struct, frozen=True, gc=False):
    """One question and its supervised answer, text alone: what most instruction data is.

    It says the same as the Conversation of these two messages, and is quicker to handle.
    """

    question: str
    answer: str
    id: str | None = None

    @property
    def conversation(self) -> Conversation:
        """The Conversation of these two messages."""
        messages = (Message("user", self.question), Message("assistant", self.answer))
        return Conversation(messages, id=self.id)
