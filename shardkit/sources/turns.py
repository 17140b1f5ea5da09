"""Turns of a chat become messages: {from, value} and {role, content}, with all that they carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from msgspec.structs import replace

from shardkit.conversation import IMAGE_MARK, REASONING, ImageRef, Message, Part, Reason, Role
from shardkit.sources.content import content_of, unfolded, without_loss
from shardkit.sources.fields import BadField, as_list, as_text, from_json
from shardkit.sources.pictures import Gathered, at_front, pictures_of
from shardkit.sources.record import Fields, Record, unsupported
from shardkit.sources.row_fields import thoughts_of
from shardkit.sources.tool_calls import calls_of_text, legacy_call
from shardkit.sources.unread_keys import is_absent

CALL = "call"
ROLES: dict[str, Role | str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    "ai": "assistant",
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "tool_results", "tool_output"), "tool"),
    **dict.fromkeys(("function_response", "function_result"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
"""The words for roles. A turn of the role `call` is an assistant's whose text is the call."""
ROLES |= {
    spell(word): role for word, role in ROLES.items() for spell in (str.capitalize, str.upper)
}
_SPEAKERS: dict[str, Role] = {word: role for word, role in ROLES.items() if role != CALL}  # type: ignore[misc]
_KNOWN = "system, user, human, assistant, gpt, tool, function_call"
_PAIRS = (
    *(("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("input", "output")),
    *(("question", "answer"), ("prompt", "response"), ("query", "response")),
)
"""What a question and its answer are called that are one object in a list of turns."""
_KEPT = ("tool_call_id", "tool_name")
"""Keys that are passed on to templates as reasoning is, and are read by that."""
_MEDIA = frozenset(("images", "image"))


class Turns:
    """The messages of one record, while its turns are read."""

    def __init__(self, record: Record, gathered: Gathered, *, moves_marks: bool) -> None:
        self.messages: list[Message] = []
        self.tools: list[tuple[str, object]] = []
        """(path, tool definitions) that stand in a message."""
        self._record = record
        self._gathered = gathered
        self._moves_marks = moves_marks
        """XTuner's rule for LLaVA: a turn's mark moves to its front, on its own line."""

    def add_all(self, items: Sequence[object], path: str) -> None:
        """Add the items of the record's list, in order; raises BadField."""
        first = 0
        if not (self._record.options.ignored or self._gathered.n_listed):
            plain = list(takewhile(_is_there, map(plain_message, items)))
            self.messages += plain  # type: ignore[arg-type]
            first = len(plain)
        for i in range(first, len(items)):
            self.add(items[i], f"{path}[{i}]")

    def add(self, item: object, path: str) -> None:
        """Add one item: a turn, or a question with its answer; raises BadField."""
        plain = plain_message(item) if not self._record.options.ignored else None
        if plain is not None:
            self._place(plain)
            return
        turn = self._record.object(unfolded(item, path), path)
        if not ("role" in turn or "from" in turn):
            for question, answer in _PAIRS:
                if question in turn and answer in turn:
                    self._add_pair(turn, question, answer)
                    return
        self._add_turn(turn)

    def _add_pair(self, turn: Fields, question: str, answer: str) -> None:
        """Add a question and its answer in one object (FineVision's, XTuner's own, Capybara's)."""
        system = turn.optional_text("system")
        if system:
            self._place(Message("system", system))
        self._place(Message("user", turn.text(question)))
        if turn.peek("need_eos_token") is False:
            raise unsupported(
                turn.at("need_eos_token"), "each answer has its end", "need_eos_token"
            )
        supervised, thoughts = not without_loss(turn), thoughts_of(turn)
        text = turn.text(answer)
        self._place(Message("assistant", text, supervised=supervised, fields=thoughts))

    def _add_turn(self, turn: Fields) -> None:
        key = "from" if "from" in turn else "role"
        who = turn.text(key)
        found = role_of(who)
        if found is None:
            detail = f"unknown role {who!r}; known: {_KNOWN} and other words for these"
            raise BadField(turn.at(key), detail, Reason.UNKNOWN_ROLE)
        if found == CALL:
            self._add_call(turn)
            return
        role: Role = found  # type: ignore[assignment]
        if not is_absent(turn.peek("tools")):
            self.tools.append((turn.at("tools"), turn.get("tools")))
        calls = _calls(turn)
        self._reject_on_others(turn, role, bool(calls))
        supervised = not without_loss(turn)
        fields = _kept(turn)
        text, parts = self._content(turn, may_be_null=bool(calls or fields))
        if parts and not any(part.supervised for part in parts):
            supervised = False
        own = pictures_of(self._record, turn) if turn.has_any(_MEDIA) else []
        name = turn.peek("name")
        message = Message(
            role,
            text,
            supervised=supervised,
            tool_calls=calls,
            name=turn.optional_text("name") if isinstance(name, str) else None,
            parts=parts,
            fields=fields | turn.rest(),
        )
        self._place(message, own, turn.path)

    def _content(self, turn: Fields, *, may_be_null: bool) -> tuple[str, tuple[Part, ...]]:
        keys = ("value", "content", "text") if "from" in turn else ("content", "value", "text")
        present = [key for key in keys if key in turn]
        key = next((key for key in present if turn.peek(key) is not None), None)
        if key is None:
            if may_be_null:
                return "", ()
            if not is_absent(turn.peek("refusal")):
                raise BadField(turn.at("refusal"), "a refusal stands in the place of the content")
            raise BadField(turn.at(present[0] if present else keys[0]), _missing(bool(present)))
        value = turn.get(key)
        if isinstance(value, str):
            return value, ()
        if not isinstance(value, list):
            return as_text(value, turn.at(key)), ()
        return content_of(self._record, value, turn.at(key), self._gathered)

    def _add_call(self, turn: Fields) -> None:
        """Add a turn that is a call; one behind another joins it, as calls made at once."""
        key = next((key for key in ("value", "content", "text") if key in turn), "value")
        calls, text = calls_of_text(turn.get(key), turn.at(key))
        message = Message(
            "assistant",
            "",
            supervised=not without_loss(turn),
            tool_calls=calls,
            call_text=text,
            fields=_kept(turn) | turn.rest(),
        )
        last = self.messages[-1] if self.messages else None
        if last is not None and last.call_text and last.supervised == message.supervised:
            self.messages[-1] = replace(
                last,
                tool_calls=last.tool_calls + calls,
                call_text=f"{last.call_text}\n{text}",
                fields=last.fields | message.fields,
            )
        else:
            self.messages.append(message)

    def _place(self, message: Message, own: Sequence[ImageRef] = (), path: str = "$") -> None:
        """Keep a message, with the pictures that its marks and its own list mean."""
        if own:
            n_marks = message.text.count(IMAGE_MARK)
            if n_marks not in (0, len(own)):
                detail = f"{n_marks} placeholders, {len(own)} images"
                raise BadField(path, detail, Reason.PLACEHOLDER_MISMATCH)
            message = message if n_marks else at_front(message, len(own))
            for image in own:
                self._gathered.add(image)
        elif not message.parts:
            if self._moves_marks and self._gathered.n_listed:
                message = _mark_first(message, self._gathered.n_listed)
            self._gathered.take_marks(message.text)
        self.messages.append(message)

    def _reject_on_others(self, turn: Fields, role: Role, has_calls: bool) -> None:
        """BadField for calls and reasoning of other roles: no template prints them there."""
        if role == "assistant":
            return
        keys = [key for key in REASONING if not is_absent(turn.peek(key))]
        keys += ["tool_calls"] if has_calls else []
        for key in keys:
            raise unsupported(turn.at(key), f"it stands on a message of the {role}", key)


def role_of(who: str) -> Role | str | None:
    """The role that a word means, however it is spelled: `Function-Call`, `human `."""
    return ROLES.get(who) or ROLES.get(who.strip().lower().replace("-", "_").replace(" ", "_"))


def plain_message(item: object) -> Message | None:
    """The message of a turn that is a role and a text, and nothing else; None for others.

    Most turns are: this is what the rest of the module makes of them, and quicker.
    """
    if type(item) is not dict or len(item) != 2:
        return None
    if "role" in item:
        who, text = item["role"], item.get("content")
    else:
        who, text = item.get("from"), item.get("value")
    if type(who) is not str or type(text) is not str:
        return None
    role = _SPEAKERS.get(who)
    return None if role is None else Message(role, text)


def _is_there(message: Message | None) -> bool:
    return message is not None


def _missing(is_null: bool) -> str:
    return "expected a string, found null" if is_null else "is missing"


def _kept(turn: Fields) -> dict[str, object]:
    """What templates are given beside role and content."""
    kept = thoughts_of(turn)
    for key in _KEPT:
        if not is_absent(turn.peek(key)):
            kept[key] = turn.get(key)
    return kept


def _calls(turn: Fields) -> tuple[object, ...]:
    """`tool_calls`, or the one `function_call` of OpenAI's older form."""
    found = from_json(turn.get("tool_calls"), turn.at("tool_calls")) if "tool_calls" in turn else ()
    if not is_absent(found) and found != ():
        items = as_list(found, turn.at("tool_calls"))
        path = turn.at("tool_calls")
        return tuple(from_json(item, f"{path}[{i}]") for i, item in enumerate(items))
    if not is_absent(turn.peek("function_call")):
        return (legacy_call(turn.get("function_call"), turn.at("function_call")),)
    return ()


_MARKER = rf"(?:(?!{re.escape(IMAGE_MARK)})<[^<>\s]+>|\[/?[A-Z_]+\])"
_WRAPPED = re.compile(rf"{_MARKER}\s*{re.escape(IMAGE_MARK)}\s*{_MARKER}")
"""A mark between markers of its own, as `<|vision_start|><image><|vision_end|>`."""


def _mark_first(message: Message, n_images: int) -> Message:
    """The mark in front of a question's words, on its own line.

    With one image, several marks in one turn are that one image. With more images, a turn that
    has several marks keeps them where they are (XTuner cannot have this), and so does a turn that
    has written a wrapper around a mark (XTuner tears it off).
    """
    n_marks = message.text.count(IMAGE_MARK)
    if message.role != "user" or not n_marks or (n_marks > 1 and n_images > 1):
        return message
    if _WRAPPED.search(message.text):
        return message
    words = message.text.replace(IMAGE_MARK, "").strip()
    return replace(message, text=f"{IMAGE_MARK}\n{words}".strip())
