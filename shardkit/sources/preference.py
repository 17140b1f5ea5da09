"""Preference rows: a prompt with a chosen and a rejected answer, or one answer with a verdict.

`--task preference` reads the published shapes of pairs: whole conversations, messages or texts
beside a prompt of any shape, Anthropic's `Human:` / `Assistant:` dialogues. `--task kto` reads rows
of one answer whose `label` says whether it is a good one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, Conversation, ImageRef, Message, Reason, Role
from shardkit.sources import chat
from shardkit.sources.alpaca import history_of
from shardkit.sources.fields import BadField, as_list, from_json, kind_of
from shardkit.sources.pictures import COLUMNS, Gathered, at_front, pictures_of, show_first
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.row_fields import system_of, tools_of
from shardkit.sources.turns import Turns
from shardkit.sources.unread_keys import is_absent, is_fact

PAIR = ("chosen", "rejected")
_MESSAGES = ("chosen_messages", "rejected_messages")
"""What LLaMA-Factory's newer rows call `chosen` and `rejected`."""
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
_QUESTIONS = ("prompt", "question", "instruction", "query", "problem")
"""What a prompt may be called that is a text."""
_COMPLETIONS = ("completion", "output", "answer", "response")
"""What the answer of a labelled row may be called; else it is the last of its messages."""
_DIALOGUE = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_BEGINS_TURN = re.compile(r'\s*\[?\s*\{\s*"(?:role|from)"\s*:')
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def looks_like(record: object, task: str) -> bool:
    """Whether a record is a row of this task."""
    if not isinstance(record, dict):
        return False
    if task == "preference":
        return all(key in record for key in PAIR) or all(key in record for key in _MESSAGES)
    return any(isinstance(record.get(key), bool) for key in LABELS)


def with_names(record: object, columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The columns to rename in a row of pairs: those given, and the other names of a pair."""
    if not isinstance(record, dict) or not all(key in record for key in _MESSAGES):
        return columns
    if any(key in record for key in PAIR) or set(PAIR) & set(columns or ()):
        return columns
    return {**(columns or {}), **dict(zip(PAIR, _MESSAGES, strict=True))}


def read(record: Record, task: str) -> Conversation:
    """The conversation of a row: the messages of its prompt are without loss; raises BadField."""
    return _read_pair(record) if task == "preference" else _read_labelled(record)


@dataclass(frozen=True, slots=True)
class _Talk:
    """Messages in a row, with the pictures of their marks."""

    messages: tuple[Message, ...]
    gathered: Gathered
    tools: tuple[tuple[str, object], ...] = ()

    @property
    def images(self) -> list[ImageRef]:
        """The pictures of all its messages, in reading order."""
        return self.gathered.images


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
        if chosen.images != rejected.images:
            detail = "it has other pictures than chosen"
            raise BadField(fields.at("rejected"), detail, Reason.PLACEHOLDER_MISMATCH)
        n = _n_shared(chosen.messages, rejected.messages)
        answers = chosen.messages[n:], rejected.messages[n:]
        tools = _check_given(record, fields, (chosen, rejected), n, listed)
        prompt = _Talk(chosen.messages[:n], chosen.gathered, tools)
    else:
        given = _prompt(record, fields, listed)
        if given is None:
            detail = "there is no prompt beside chosen and rejected: --map prompt=NAME names it"
            raise BadField("$", detail)
        prompt, answers = given, (chosen.messages, rejected.messages)
        for key, talk in zip(PAIR, (chosen, rejected), strict=True):
            _check_pictureless(talk, fields.at(key))
    _check_answers(fields, answers)
    for key, value in fields.rest().items():
        if is_fact(key, value):
            fields.only_count(key)
    return _conversation(record, fields, prompt, answers, (*chosen.tools, *rejected.tools))


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
        _check_pictureless(answer, fields.at(key))
    else:
        answer = _with_messages(given, given.messages[-1:])
        given = _with_messages(given, given.messages[:-1])
    _check_answers(fields, (answer.messages,))
    found = _conversation(record, fields, given, (answer.messages,), answer.tools)
    return replace(found, label=label)


def _conversation(
    record: Record,
    fields: Fields,
    prompt: _Talk,
    answers: Sequence[tuple[Message, ...]],
    tools: Sequence[tuple[str, object]],
) -> Conversation:
    """The prompt with its system message, tools and pictures, and the answers behind it."""
    messages = list(prompt.messages)
    system = system_of(fields)
    if system:
        chat.add_system(messages, system, fields)
    names_images = any(name in fields for name in COLUMNS)
    _check_marks(messages, answers, prompt.gathered, record.options.has_images or names_images)
    return Conversation(
        (*_without_loss(messages), *answers[0]),
        images=tuple(prompt.images),
        id=fields.id(),
        tools=chat.with_tools(tools_of(fields), [*prompt.tools, *tools]),
        n_prompt=len(messages),
        rejected=answers[1] if len(answers) > 1 else (),
    )


def _check_marks(
    prompt: Sequence[Message],
    answers: Sequence[tuple[Message, ...]],
    gathered: Gathered,
    has_images: bool,
) -> None:
    """BadField unless each picture has its mark in the prompt, and no answer has one."""
    gathered.check(prompt, has_images)
    is_marked = any(IMAGE_MARK in message.text for answer in answers for message in answer)
    if is_marked and (has_images or gathered.images):
        raise BadField("$", "a picture in an answer", Reason.PLACEHOLDER_MISMATCH)


def _check_pictureless(answer: _Talk, path: str) -> None:
    """BadField for an answer, beside its prompt, that has a picture."""
    if answer.images or answer.gathered.n_missing:
        raise BadField(path, "a picture in an answer", Reason.PLACEHOLDER_MISMATCH)


def _with_messages(talk: _Talk, messages: tuple[Message, ...]) -> _Talk:
    """A talk with these messages instead, and its pictures and tools."""
    return _Talk(messages, talk.gathered, talk.tools)


def _talk(record: Record, fields: Fields, key: str, listed: Sequence[ImageRef]) -> _Talk:
    """The messages of a field: a list of turns, one turn, a text, or a dialogue in one text."""
    value, path = turns_in(fields.get(key), fields.at(key)), fields.at(key)
    if isinstance(value, str):
        return _of_texts(_dialogue(value) or [Message("assistant", value)], listed)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise BadField(path, f"expected messages or a text, found {kind_of(value)}")
    return _turns(record, items, path, listed)


def turns_in(value: object, path: str) -> object:
    """The turns that a text is the JSON of; other texts are words, also those that are JSON.

    BadField for turns whose JSON is broken.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", '{"')):
        return value
    if _BEGINS_TURN.match(value):
        return from_json(value, path)
    try:
        found = from_json(value, path)
    except BadField:
        return value
    items = found if isinstance(found, list) else [found]
    are_turns = all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)
    return found if are_turns else value


def _turns(record: Record, items: Sequence[object], path: str, listed: Sequence[ImageRef]) -> _Talk:
    gathered = Gathered(listed)
    turns = Turns(record, gathered, moves_marks=False)
    turns.add_all(items, path)
    if not turns.messages:
        raise BadField(path, "is empty")
    if turns.messages[0].role != "assistant":
        show_first(turns.messages, gathered, between="")  # as TRL: an image part, and the words
    return _Talk(tuple(turns.messages), gathered, tuple(turns.tools))


def _of_texts(messages: Sequence[Message], listed: Sequence[ImageRef]) -> _Talk:
    """Messages that are texts; their marks take the row's pictures."""
    gathered = Gathered(listed)
    for message in messages:
        gathered.take_marks(message.text)
    return _Talk(tuple(messages), gathered)


def _dialogue(text: str) -> list[Message]:
    """The turns of a text of `Human:` and `Assistant:`; empty where it does not begin with one.

    One turn alone shows itself by the empty line before it: "Human: ..." may be the user's words.
    """
    if "\n\nAssistant:" not in text and not text.startswith("\n\nHuman:"):
        return []
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
        value = turns_in(fields.peek(key), fields.at(key))
        if isinstance(value, list) and value:
            fields.get(key)
            return _turns(record, as_list(value, fields.at(key)), fields.at(key), listed)
    messages = history_of(fields)
    asked = (*_QUESTIONS, "input")  # with an instruction, its input is more of it
    question = next((key for key in asked if not is_absent(fields.peek(key))), None)
    if question is None:
        return None
    messages += _asked(fields, question)
    if listed and not any(IMAGE_MARK in message.text for message in messages):
        messages[-1] = at_front(messages[-1], len(listed))
    return _of_texts(messages, listed)


def _asked(fields: Fields, question: str) -> list[Message]:
    """The messages of a prompt that is a text: one of the user, or those of a dialogue."""
    text = fields.text(question)
    if question == "instruction" and (more := fields.optional_text("input")):
        text = f"{text}\n{more}"
    dialogue = _dialogue(text)
    if dialogue and not dialogue[-1].text and dialogue[-1].role == "assistant":
        dialogue = dialogue[:-1]  # "\n\nAssistant:" ends the prompt
    return dialogue or [Message("user", text)]


def _n_shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages two conversations have in common at their beginning."""
    pairs = zip(chosen, rejected, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_given(
    record: Record, fields: Fields, sides: Sequence[_Talk], n: int, listed: Sequence[ImageRef]
) -> tuple[tuple[str, object], ...]:
    """What stands beside whole conversations is how one of them begins; BadField where it is not.

    One message may also be another of the `n` that they share. The tools in these turns come back.
    """
    tools: list[tuple[str, object]] = []
    shared = sides[0].messages[:n]
    for key in ("prompt", *chat.LISTS, *_QUESTIONS[1:], "history"):
        if is_absent(fields.peek(key)):
            continue
        given = _given(record, fields, key, listed)
        said, n_images = given.messages, len(given.images)
        is_said = any(
            said == side.messages[: len(said)] and given.images == side.images[:n_images]
            for side in sides
        )
        if len(said) == 1 and not is_said:
            is_said = _is_in(said[0], shared) and all(
                one in sides[0].images for one in given.images
            )
        if not is_said:
            why = "the row has another prompt than its conversations begin with"
            raise unsupported(fields.at(key), why, key)
        tools += given.tools
    return tuple(tools)


def _given(record: Record, fields: Fields, key: str, listed: Sequence[ImageRef]) -> _Talk:
    """The messages of one field that may stand beside whole conversations."""
    if key == "history":
        return _of_texts(history_of(fields), listed)
    value = turns_in(fields.peek(key), fields.at(key))
    if isinstance(value, str):
        return _of_texts(_asked(fields, key), listed)
    return _talk(record, fields, key, listed)


def _is_in(one: Message, shared: Sequence[Message]) -> bool:
    """Whether a message is one of these; one of words alone may have spaces around it."""
    if one.tool_calls or one.call_text or one.reasoning:
        return one in shared
    return any(one.text.strip() == message.text.strip() for message in shared)


def _check_answers(fields: Fields, answers: Sequence[tuple[Message, ...]]) -> None:
    """BadField unless each answer begins with the assistant, and all of it is in the loss."""
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
    key = next((key for key in LABELS if not is_absent(fields.peek(key))), LABELS[0])
    value = fields.get(key)
    if isinstance(value, bool):
        return value
    found = "is missing" if value is None else f"expected true or false, found {kind_of(value)}"
    raise BadField(fields.at(key), found)


def _without_loss(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, supervised=False) for message in messages)
