"""Preference rows: a prompt with a chosen and a rejected answer, or one answer with a verdict.

`--task preference` reads the published shapes of pairs: whole conversations, messages or texts
beside a prompt of any shape, Anthropic's `Human:` / `Assistant:` dialogues. `--task kto` reads rows
of one answer whose `label` says whether it is a good one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, Conversation, ImageRef, Message, Reason, Role
from shardkit.sources import chat
from shardkit.sources.alpaca import history_of
from shardkit.sources.fields import BadField, as_id, as_list, from_json, kind_of
from shardkit.sources.meaning import is_absent
from shardkit.sources.pictures import Gathered, at_front, pictures_of
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.row_fields import system_of, tools_of
from shardkit.sources.turns import Turns

PAIR = ("chosen", "rejected")
LABELS = ("label", "kto_tag")
"""What says whether the answer of a row is a good one."""
FIELDS = {
    "preference": "`chosen` and `rejected`: messages or texts, with or without a prompt beside them"
    " (`prompt`, `conversations`, `messages`, `question`, or `instruction` and `input`); optional"
    " `system`, `tools`, `image(s)`",
    "kto": "`label` (true or false) beside `prompt` and `completion`, or beside a row of `chat` or "
    "`alpaca`",
}
"""What a record holds, by task."""
_QUESTIONS = ("prompt", "question", "instruction")
"""What a prompt may be called that is a text."""
_COMPLETIONS = ("completion", "output", "answer", "response")
"""What the answer of a labelled row may be called; else it is the last of its messages."""
_FACTS = ("model", "name", "policy", "rating", "score", "rank", "length")
"""Last words of keys that say something about the answers, and are not used."""
_DIALOGUE = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def looks_like(record: object, task: str) -> bool:
    """Whether a record is a row of this task."""
    if not isinstance(record, dict):
        return False
    if task == "preference":
        return all(key in record for key in PAIR)
    return any(isinstance(record.get(key), bool) for key in LABELS)


def read(record: Record, task: str) -> Conversation:
    """The conversation of a row: the messages of its prompt are without loss."""
    return _read_pair(record) if task == "preference" else _read_labelled(record)


@dataclass(frozen=True, slots=True)
class _Talk:
    """Messages in a row, with the pictures of their marks."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    tools: tuple[tuple[str, object], ...] = ()


def _read_pair(record: Record) -> Conversation:
    fields = record.root()
    for key in PAIR:
        if is_absent(fields.peek(key)):
            raise BadField(fields.at(key), "is missing, or empty")
    listed = pictures_of(record, fields)
    chosen, rejected = (_talk(record, fields, key, listed) for key in PAIR)
    whole = [talk.messages[0].role != "assistant" for talk in (chosen, rejected)]
    if whole[0] != whole[1]:
        raise BadField("$", "one of chosen and rejected is a whole conversation, the other is not")
    if whole[0]:
        n = _n_shared(chosen.messages, rejected.messages)
        prompt = _with_messages(chosen, chosen.messages[:n])
        _check_given(record, fields, chosen.messages[:n], listed)
        answers = chosen.messages[n:], rejected.messages[n:]
    else:
        given = _prompt(record, fields, listed)
        if given is None:
            raise BadField("$", "there is no prompt beside chosen and rejected")
        prompt, answers = given, (chosen.messages, rejected.messages)
    _check_answers(fields, answers)
    _count_facts(fields)
    return _conversation(record, fields, prompt, answers, listed, (*chosen.tools, *rejected.tools))


def _read_labelled(record: Record) -> Conversation:
    fields = record.root()
    label = _label(fields)
    listed = pictures_of(record, fields)
    key = next((key for key in _COMPLETIONS if not is_absent(fields.peek(key))), None)
    given = _prompt(record, fields, listed)
    if given is None:
        raise BadField("$", "there is no prompt")
    if key is not None:
        answer = _talk(record, fields, key, [])
    else:
        answer = _with_messages(given, given.messages[-1:])
        given = _with_messages(given, given.messages[:-1])
    _check_answers(fields, (answer.messages,))
    found = _conversation(record, fields, given, (answer.messages,), listed, answer.tools)
    return replace(found, label=label)


def _conversation(
    record: Record,
    fields: Fields,
    prompt: _Talk,
    answers: Sequence[tuple[Message, ...]],
    listed: Sequence[ImageRef],
    tools: Sequence[tuple[str, object]],
) -> Conversation:
    """The prompt with its system message, tools and pictures, and the answers behind it."""
    messages = list(prompt.messages)
    system = system_of(fields)
    if system:
        chat.add_system(messages, system, fields)
    _check_marks(messages, answers, max(len(prompt.images), len(listed)), record.options.has_images)
    return Conversation(
        (*_without_loss(messages), *answers[0]),
        images=prompt.images,
        id=as_id(fields.get("id")),
        tools=chat.with_tools(tools_of(fields), [*prompt.tools, *tools]),
        n_prompt=len(messages),
        rejected=answers[1] if len(answers) > 1 else (),
    )


def _check_marks(
    prompt: Sequence[Message],
    answers: Sequence[tuple[Message, ...]],
    n_images: int,
    has_images: bool,
) -> None:
    """Each picture has its mark in the prompt, and no answer has one."""
    if not n_images and not has_images:
        return
    n_marks = sum(message.text.count(IMAGE_MARK) for message in prompt)
    if n_marks != n_images:
        detail = f"{n_marks} placeholders in the prompt, {n_images} images"
        raise BadField("$", detail, Reason.PLACEHOLDER_MISMATCH)
    if any(IMAGE_MARK in message.text for answer in answers for message in answer):
        raise BadField("$", "a picture in an answer", Reason.PLACEHOLDER_MISMATCH)


def _with_messages(talk: _Talk, messages: tuple[Message, ...]) -> _Talk:
    """The same with these messages."""
    return _Talk(messages, talk.images, talk.tools)


def _talk(record: Record, fields: Fields, key: str, listed: Sequence[ImageRef]) -> _Talk:
    """The messages of a field: a list of turns, one turn, a text, or a dialogue in one text."""
    value, path = fields.get(key), fields.at(key)
    if isinstance(value, str) and value.lstrip().startswith(("[{", '{"')):
        value = from_json(value, path)
    if isinstance(value, str):
        turns = _dialogue(value) if "\n\nAssistant:" in value else []
        return _Talk((turns and tuple(turns)) or (Message("assistant", value),))
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise BadField(path, f"expected messages or a text, found {kind_of(value)}")
    return _turns(record, items, path, listed)


def _turns(record: Record, items: Sequence[object], path: str, listed: Sequence[ImageRef]) -> _Talk:
    gathered = Gathered(listed)
    turns = Turns(record, gathered, moves_marks=False)
    for i, item in enumerate(items):
        turns.add(item, f"{path}[{i}]")
    if not turns.messages:
        raise BadField(path, "is empty")
    return _Talk(tuple(turns.messages), tuple(gathered.images), tuple(turns.tools))


def _dialogue(text: str) -> list[Message]:
    """The turns of a text of `Human:` and `Assistant:`; empty where it does not begin with one."""
    found = list(_DIALOGUE.finditer(text))
    if not found or text[: found[0].start()].strip():
        return []
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        Message(_SPEAKERS[match[1]], text[match.end() : end].rstrip())
        for match, end in zip(found, ends, strict=True)
    ]


def _prompt(record: Record, fields: Fields, listed: Sequence[ImageRef]) -> _Talk | None:
    """What stands beside the answers: a list of turns, or a question; None where nothing does."""
    for key in ("prompt", *chat.LISTS):
        value = fields.peek(key)
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            value = from_json(value, fields.at(key))
        if isinstance(value, list) and value:
            fields.get(key)
            return _turns(record, as_list(value, fields.at(key)), fields.at(key), listed)
    messages = history_of(fields)
    question = next((key for key in _QUESTIONS if not is_absent(fields.peek(key))), None)
    if question is None:
        return None
    text = fields.text(question)
    if question == "instruction" and (more := fields.optional_text("input")):
        text = f"{text}\n{more}"
    dialogue = _dialogue(text)
    if dialogue and not dialogue[-1].text and dialogue[-1].role == "assistant":
        dialogue = dialogue[:-1]  # "\n\nAssistant:" ends the prompt
    messages += dialogue or [Message("user", text)]
    if listed and not any(IMAGE_MARK in message.text for message in messages):
        messages[-1] = at_front(messages[-1], len(listed))
    gathered = Gathered(listed)
    for message in messages:
        gathered.take_marks(message.text)
    return _Talk(tuple(messages), tuple(gathered.images))


def _n_shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages two conversations have in common at their beginning."""
    pairs = zip(chosen, rejected, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_given(
    record: Record, fields: Fields, shared: Sequence[Message], listed: Sequence[ImageRef]
) -> None:
    """A prompt beside whole conversations is how they begin; BadField where it is not.

    A list of turns may also be the chosen conversation again.
    """
    texts = {message.text.strip() for message in shared}
    for key in ("prompt", *chat.LISTS, *_QUESTIONS[1:]):
        value = fields.peek(key)
        if is_absent(value):
            continue
        given = _talk(record, fields, key, listed).messages
        is_said = _n_shared(given, shared) == min(len(given), len(shared))
        if len(given) == 1:
            is_said = given[0].text.strip() in texts
        if not is_said:
            why = "the row has another prompt than its conversations begin with"
            raise unsupported(fields.at(key), why, key)


def _check_answers(fields: Fields, answers: Sequence[tuple[Message, ...]]) -> None:
    """Each answer begins with one of the assistant, and all of it is in the loss."""
    for key, answer in zip(PAIR if len(answers) > 1 else ("$",), answers, strict=True):
        path = fields.at(key) if len(answers) > 1 else "$"
        if not answer:
            detail = "it is how the other one begins: nothing is left of it"
            raise BadField(path, detail, Reason.NO_ANSWER)
        if answer[0].role != "assistant":
            detail = f"the answer begins with a message of the role {answer[0].role!r}"
            raise BadField(path, detail, Reason.NO_ANSWER)
        if not all(message.supervised and not message.has_switched_parts for message in answer):
            detail = "a switch of the loss in an answer, all of which is in the loss"
            raise BadField(path, detail, Reason.UNSUPPORTED_FIELD)
    if len(answers) > 1 and answers[0] == answers[1]:
        raise BadField("$", "chosen and rejected are the same")


def _label(fields: Fields) -> bool:
    key = next((key for key in LABELS if key in fields), LABELS[0])
    value = fields.get(key)
    if isinstance(value, bool):
        return value
    found = "is missing" if value is None else f"expected true or false, found {kind_of(value)}"
    raise BadField(fields.at(key), found)


def _count_facts(fields: Fields) -> None:
    """Scores and names of models beside the answers change no token: they are only counted."""
    for key, value in fields.rest().items():
        last = re.split(r"[_\-.]", key.lower())[-1]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key not in LABELS and (is_number or last in _FACTS):
            fields.only_count(key)


def _without_loss(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, supervised=False) for message in messages)
