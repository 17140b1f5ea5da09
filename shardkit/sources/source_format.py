"""The source formats, and how their rows are read.

A format is one module with `looks_like` and `read`, and one entry in SOURCES. Rules and their
sources: XTuner's map functions (alpaca, llava, wizardlm, openai, pretrain), whose results these
equal, and LLaMA-Factory's columns (`history`, `images`, `tools`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Message, Reason, Reject
from shardkit.errors import BadInput, UsageError
from shardkit.format.recipe import PREFERENCE, SFT
from shardkit.sources import alpaca, chat, columns, preference, text, tokenized, webdataset
from shardkit.sources.fields import BadField, kind_of
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.record import ReadOptions, Record, Unread, renamed, without_ignored
from shardkit.sources.rows import read_plain, read_some
from shardkit.sources.scan import SourceScan

Family = Literal["chat", "text", "tokens"]
Found = Conversation | Exchange | Reject
_PLAIN = ReadOptions()
_N_SHOW_KEYS = 16
"""Rows that show which keys the rows of a batch have."""


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """One raw format."""

    name: str
    fields: str
    """What a record holds, for documents and error messages."""
    looks_like: Callable[[object], bool]
    convert: Callable[[Record], Conversation]
    """The conversation of a record; raises BadField."""
    plain: tuple[PlainRows, ...] = ()
    """Shapes of the format's plainest rows, one question and one answer, which are read quickly."""
    family: Family = "chat"
    """A row of another format of the same family is read by its own shape."""
    is_packed: Callable[[object], bool] = lambda record: False
    """Whether a record is a pack of several samples already, which is left so."""

    def read(
        self, record: object, options: ReadOptions, unread: Unread | None = None
    ) -> Conversation | Reject:
        """The record's conversation, or the reason why it has none.

        Keys that nobody reads are counted in `unread`.
        """
        if options.task == PREFERENCE:
            columns = preference.with_names(record, options.columns)
            if columns is not options.columns:
                options = dataclasses.replace(options, columns=columns)
        record = renamed(record, options.columns)
        opened = Record(record, options)
        try:
            if options.task == SFT:
                shape = self._own_shape(without_ignored(record, options))
                conversation = shape.convert(opened)
            else:
                conversation = preference.read(opened, options.task)
            opened.count_unread(Counter() if unread is None else unread)
        except BadField as err:
            return _nearer(err, opened)
        if conversation.kind != "chat":
            return conversation
        if options.system:
            conversation = _with_system(conversation, options.system)
        return _checked(conversation)

    def read_rows(
        self, scan: SourceScan, rows: NDArray[np.int64], options: ReadOptions, unread: Unread
    ) -> list[Found]:
        """What rows of a file become, in the order given."""
        shapes = self._plain(options)
        for shape in shapes:
            decoded = read_plain(scan, rows, shape)
            if decoded is not None:
                return self.read_plain(decoded, shape, options, unread)
        firsts = read_some(scan, rows[:_N_SHOW_KEYS]) if shapes else []
        for shape in filter(None, (shape.widened(firsts) for shape in shapes)):
            decoded = read_plain(scan, rows, shape)
            if decoded is not None:
                return self.read_plain(decoded, shape, options, unread)
        return self.read_all(read_some(scan, rows, unread), options, unread)

    def read_row(self, scan: SourceScan, row: int, options: ReadOptions) -> Found:
        """What one row of a file becomes."""
        (found,) = self.read_rows(scan, np.array([row]), options, Counter())
        return found

    def read_all(
        self,
        records: Sequence[object | Reject],
        options: ReadOptions,
        unread: Unread | None = None,
    ) -> list[Found]:
        """Conversations or rejects of many records at once; what is a Reject already stays one."""
        shapes = self._plain(options)
        found: list[Found] = []
        for record in records:
            one: Found | None = record if isinstance(record, Reject) else None
            for shape in shapes:
                one = one or shape.converted(record)
            found.append(one or self.read(record, options, unread))
        return found

    def read_plain(
        self,
        rows: Sequence[msgspec.Struct],
        plain: PlainRows,
        options: ReadOptions,
        unread: Unread,
    ) -> list[Found]:
        """Conversations of rows that were decoded as `plain` says."""
        found = plain.exchanges(rows)
        if all(found):
            plain.count_extra(rows, unread)
            return found  # type: ignore[return-value]
        plain.count_extra([row for one, row in zip(found, rows, strict=True) if one], unread)
        return [
            one or self.read(msgspec.json.decode(msgspec.json.encode(row)), options, unread)
            for one, row in zip(found, rows, strict=True)
        ]

    def _plain(self, options: ReadOptions) -> tuple[PlainRows, ...]:
        """The shapes that say all there is to say; beside images, `<image>` in a text is one."""
        is_plain = options.task == SFT and not (options.columns or options.has_images)
        return self.plain if is_plain and not options.system else ()

    def _own_shape(self, record: object) -> SourceFormat:
        """The format that reads a record: this one, or another of its family; raises BadField."""
        if self.looks_like(record):
            return self
        for other in SOURCES.values():
            if other is not self and other.looks_like(record):
                if other.family == self.family:
                    return other
                why = f"the row is of the format {other.name}, and its file is {self.name}"
                raise BadField("$", why)
        return self


def _nearer(err: BadField, opened: Record) -> Reject:
    """Why a record is rejected: where pictures are missing, the key that may hold them."""
    if err.reject.reason == Reason.PLACEHOLDER_MISMATCH:
        try:
            opened.count_unread(Counter())
        except BadField as unread:
            return unread.reject
    return err.reject


def _with_system(conversation: Conversation, system: str) -> Conversation:
    messages = conversation.messages
    if any(message.role == "system" for message in messages):
        return conversation
    n_prompt = conversation.n_prompt
    return replace(
        conversation,
        messages=(Message("system", system), *messages),
        n_prompt=n_prompt + 1 if n_prompt else 0,
    )


def _checked(conversation: Conversation) -> Conversation | Reject:
    """What every format demands of a chat: an answer."""
    if any(message.role == "assistant" for message in conversation.messages):
        return conversation
    n_messages = len(conversation.messages)
    return Reject(Reason.NO_ANSWER, f"{n_messages} messages, none of the assistant")


SOURCES: dict[str, SourceFormat] = {
    source.name: source
    for source in [
        SourceFormat(
            "tokenized",
            "`input_ids`, `labels`; optional `cumulative_len`, `image`",
            tokenized.looks_like,
            tokenized.read,
            family="tokens",
            is_packed=tokenized.is_packed,
        ),
        SourceFormat(
            "alpaca",
            "`instruction`, `output`; optional `input`, `system`, `history`, `tools`, `image`; "
            "or a question (`question`, `prompt`, `query`, `problem`) and an answer (`answer`, "
            "`response`, `completion`, `solution`)",
            alpaca.looks_like,
            alpaca.read,
            (alpaca.PLAIN,),
        ),
        SourceFormat(
            "chat",
            "a list of turns (`messages`, `conversations`, ... or the row itself) of `role` and "
            "`content` or `from` and `value`, or a `prompt` of turns and its `completion`; optional"
            " `system`, `tools`, `image(s)`",
            chat.looks_like,
            chat.read,
            chat.PLAIN,
        ),
        SourceFormat("text", "`text` (or `content`)", text.looks_like, text.read, family="text"),
        SourceFormat(
            "webdataset",
            "samples of a tar: pictures with a caption (`.txt`, or `caption` in `.json`), or with "
            "a `.json` that is a row of `chat` or `alpaca`",
            webdataset.looks_like,
            webdataset.read,
        ),
    ]
}
"""Every source format by name; `auto` takes the first that half of the first rows look like."""
OTHER_NAMES = {"sharegpt": "chat", "llava": "chat", "messages": "chat"}
"""Names that formats had before, or have elsewhere."""


def source_named(name: str) -> SourceFormat:
    """The format of that name; raises UsageError when there is none."""
    found = SOURCES.get(OTHER_NAMES.get(name, name))
    if found is None:
        raise UsageError(
            f"there is no source format {name!r}",
            expected=", ".join(["auto", *SOURCES, *OTHER_NAMES]),
            fix="Choose one of these with --format.",
        )
    return found


def detect(records: Sequence[object], where: str, options: ReadOptions = _PLAIN) -> tuple[str, str]:
    """The first format that at least half of these records look like, and why, in words.

    For a task other than `sft` it is `chat`, where half of the records are rows of the task.

    Raises BadInput, naming what was seen, when no format fits.
    """
    shown = [without_ignored(renamed(record, options.columns), options) for record in records]
    if options.task != SFT:
        return _detect_task(shown, where, options.task)
    for name, source in SOURCES.items():
        n_fitting = sum(source.looks_like(record) for record in shown)
        if n_fitting and n_fitting >= len(shown) / 2:
            return name, f"{n_fitting} of the first {len(shown)} rows hold {source.fields}"
    is_pair = any(preference.looks_like(record, PREFERENCE) for record in shown)
    if any(isinstance(record, dict) and text.is_turn(record) for record in shown):
        fix = f"Here {text.ONE_MESSAGE}."
    else:
        fix = columns.advice(shown)
    hint = "This looks like preference data: --task preference. " if is_pair else ""
    raise BadInput(
        "no source format fits these rows",
        where=where,
        expected="one of these, the nearest first:\n" + "\n".join(_formats_by(records)) + "\n ",
        found=_shapes(records),
        fix=hint + fix,
    )


def _formats_by(records: Sequence[object]) -> list[str]:
    """A line for each format, those first whose fields these records have."""
    keys = {key for record in records if isinstance(record, dict) for key in record}

    def n_common(source: SourceFormat) -> int:
        return sum(f"`{key}`" in source.fields for key in keys)

    ordered = sorted(SOURCES.values(), key=n_common, reverse=True)
    return [f"    {source.name}: {source.fields}" for source in ordered]


def _detect_task(records: Sequence[object], where: str, task: str) -> tuple[str, str]:
    """The format of rows of another task, which have shapes of their own, and why."""
    n_fitting = sum(preference.looks_like(record, task) for record in records)
    if n_fitting and n_fitting >= len(records) / 2:
        return "chat", f"{n_fitting} of the first {len(records)} rows hold {task} data"
    raise BadInput(
        f"these rows are not what --task {task} reads",
        where=where,
        expected=preference.FIELDS[task],
        found=_shapes(records),
        fix="Name the columns, as --map prompt=query,chosen=good,rejected=bad, or leave it out.",
    )


def _shapes(records: Sequence[object]) -> str:
    return " or ".join(sorted({_shape(record) for record in records})[:3]) or "no rows at all"


def _shape(record: object) -> str:
    if isinstance(record, dict):
        return "an object with " + ", ".join(map(repr, list(record)[:8]))
    return kind_of(record)
