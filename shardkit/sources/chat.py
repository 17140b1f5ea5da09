"""`chat`: rows of turns, whatever they are called: ShareGPT, LLaVA, OpenAI messages, FineVision."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from shardkit.conversation import Conversation, Exchange, Message, Reason
from shardkit.sources.fields import BadField, as_id, as_list, as_object, from_json
from shardkit.sources.pictures import COLUMNS, Gathered, pictures_of, show_first
from shardkit.sources.plain_rows import PlainRows
from shardkit.sources.record import Fields, Record, unsupported, without_ignored
from shardkit.sources.row_fields import system_of, tool_list, tools_of
from shardkit.sources.tars import KEY
from shardkit.sources.turns import ROLES, Turns, plain_message, role_of
from shardkit.sources.unread_keys import is_absent, why_the_key_matters

LISTS = ("messages", "conversations", "conversation", "dialogs", "dialog", "turns", "texts")
"""What a record may call its list of turns; another name is found by what is in the list."""
_LISTS = frozenset(LISTS)
_ANSWERS = ("completion", "response", "answer", "output")
"""What an answer is called that stands beside the turns before it."""
_COMPLETED = ("prompt", "completion")
_TALKS = ("messages", "conversations", "conversation")
"""Names of lists whose texts without roles are a question and its answer in turn (LIMA); texts
under the other names in LISTS may be questions alone, or of two people."""


def looks_like(record: object) -> bool:
    """Whether a record is a list of turns, or holds one."""
    if isinstance(record, list):
        return not record or isinstance(record[0], dict)
    return isinstance(record, dict) and KEY not in record and _key_of(record) is not None


def read(record: Record, *, shows_first: bool = False) -> Conversation:
    """The turns with their pictures, the system message and the tools; raises BadField.

    `shows_first`: pictures that no text marks stand before the first question.
    """
    simple = _simple(record)
    if simple is not None:
        return simple
    if isinstance(record.value, list):
        return _conversation(record, record.value, "$", None, "", shows_first)
    fields = record.root()
    key = _key_of(as_object(without_ignored(record.value, record.options), "$"))
    if key is None:
        names = ", ".join(map(repr, fields.keys()[:8])) or "no field"
        raise BadField("$", f"there is no list of messages; the row has {names}")
    path = fields.at(key)
    value = fields.get(key)
    if key in _COMPLETED and all(one in fields for one in _COMPLETED):
        return _completed(record, fields)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = from_json(value, path)
    if isinstance(value, dict):
        value = _transposed(value)
    for other in LISTS:
        if other != key and other in fields and _say_the_same(fields.peek(other), value):
            fields.get(other)
    return _conversation(record, as_list(value, path), path, fields, key, shows_first)


def _simple(record: Record) -> Conversation | None:
    """What `read` makes of turns of text alone, quicker; None for a record that holds more."""
    value, options = record.value, record.options
    if type(value) is not dict or options.ignored or options.has_images:
        return None
    items = value.get("conversations") or value.get("messages")
    if type(items) is not list or len(value) - ("id" in value) != 1:
        return None
    messages, name = tuple(map(plain_message, items)), as_id(value.get("id"))
    if not all(messages) or (name is None and not is_absent(value.get("id"))):
        return None
    return Conversation(messages, id=name)  # type: ignore[arg-type]


def _conversation(
    record: Record,
    items: list[object],
    path: str,
    fields: Fields | None,
    key: str,
    shows_first: bool,
) -> Conversation:
    gathered = Gathered(pictures_of(record, fields) if fields else [])
    turns = Turns(record, gathered, moves_marks=key == "conversations")
    turns.add_all(with_roles(items, path, key), path)
    if fields and turns.messages and turns.messages[-1].role != "assistant":
        _refuse_answer_beside(fields)
    return _with_the_rest(record, turns, gathered, fields, shows_first or key == "texts")


def _refuse_answer_beside(fields: Fields) -> None:
    """Raise BadField where what answers the last turn may stand beside the list."""
    for key in _ANSWERS:
        if key in fields and not is_absent(fields.peek(key)):
            why = "it may answer the last turn, and nobody reads it: put it at the end of the list"
            raise unsupported(fields.at(key), why, key)


def _completed(record: Record, fields: Fields) -> Conversation:
    """TRL's `prompt` and `completion`, turns or a text: the completion alone is trained.

    A completion may also be one turn.
    """
    gathered = Gathered(pictures_of(record, fields))
    turns = Turns(record, gathered, moves_marks=False)
    for key in _COMPLETED:
        value, path = fields.get(key), fields.at(key)
        if is_absent(value):
            raise BadField(path, "is empty", Reason.NO_ANSWER)
        if isinstance(value, str):
            role = "user" if key == "prompt" else "assistant"
            turns.add({"role": role, "content": value}, path)
        elif key == "completion" and isinstance(value, dict):
            turns.add(value, path)
        else:
            turns.add_all(as_list(value, path), path)
        if key == "prompt":
            turns.messages = [replace(one, supervised=False) for one in turns.messages]
    return _with_the_rest(record, turns, gathered, fields, False)


def _with_the_rest(
    record: Record, turns: Turns, gathered: Gathered, fields: Fields | None, shows_first: bool
) -> Conversation:
    """The turns, with what stands beside them in the record; raises BadField."""
    messages = turns.messages
    if shows_first:
        show_first(messages, gathered)
    system = system_of(fields) if fields else None
    if system:
        add_system(messages, system, fields)
    tools = tools_of(fields) if fields else ()
    names_images = fields is not None and any(name in fields for name in COLUMNS)
    gathered.check(messages, record.options.has_images or names_images)
    return Conversation(
        tuple(messages),
        images=tuple(gathered.images),
        id=fields.id() if fields else None,
        tools=with_tools(tools, turns.tools),
    )


def has_turns(values: Mapping[str, object]) -> bool:
    """Whether a record has a list of turns under one of the names for it."""
    if _LISTS.isdisjoint(values):
        return False
    lists = (values.get(key) for key in LISTS)
    return any(isinstance(one, list) and one and isinstance(one[0], dict) for one in lists)


def with_roles(items: list[object], path: str, key: str) -> list[object]:
    """Texts that question and answer each other in turn, alone or in pairs, as turns.

    Other items are given back as they are. BadField for texts under a `key` that does not tell
    whose they are.
    """
    if not key:
        return items
    texts = items
    if items and all(isinstance(item, list) and len(item) == 2 for item in items):
        texts = [text for pair in items for text in pair]  # type: ignore[attr-defined]
    if not texts or not all(isinstance(text, str) for text in texts):
        return items
    if key not in _TALKS:
        why = f"texts without roles: --map messages={path[2:]} reads them as question and answer"
        raise BadField(path, why)
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _key_of(values: Mapping[str, object]) -> str | None:
    """The key of the list of turns."""
    for key in LISTS:
        value = values.get(key)
        if value and isinstance(value, list):
            return key
    present = [key for key in LISTS if not is_absent(values.get(key))]
    found = next((key for key, value in values.items() if _are_turns(key, value)), None)
    return found or next(iter(present), None) or next((key for key in LISTS if key in values), None)


def _transposed(value: dict[str, object]) -> object:
    """Turns that stand as a list for each key, as `datasets` stores a Sequence of objects."""
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    lengths = {len(items) for items in lists.values()}
    if len(lists) < len(value) or len(lengths) != 1:
        return value
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _say_the_same(other: object, turns: object) -> bool:
    """Whether a second list has the same turns, in either spelling of roles and words."""
    pairs = [
        [(role_of(str(who)), words) for who, words in map(_spelled, items)]
        for items in (other, turns)
        if isinstance(items, list)
    ]
    return len(pairs) == 2 and pairs[0] == pairs[1] and bool(pairs[0])


def _spelled(turn: object) -> tuple[object, object]:
    if not isinstance(turn, dict):
        return None, None
    if "from" in turn:
        return turn["from"], turn.get("value")
    return turn.get("role"), turn.get("content")


def _are_turns(key: str, value: object) -> bool:
    """Whether a list under a name that is not in LISTS is one of turns."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    has_role = "role" in value[0] or "from" in value[0]
    return has_role and why_the_key_matters(key, value, True) is None


def add_system(messages: list[Message], system: str, fields: Fields | None) -> None:
    """Add the row's system message, unless its turns say the same; BadField for two of them."""
    own = [message.text for message in messages if message.role == "system"]
    if not own:
        messages.insert(0, Message("system", system))
    elif system not in own and fields is not None:
        raise unsupported(fields.at("system"), "the turns have another system message", "system")


def with_tools(tools: tuple[object, ...], inside: list[tuple[str, object]]) -> tuple[object, ...]:
    """The row's tools, or those that one of its messages has; BadField where the two differ."""
    found = tools
    for path, value in inside:
        listed = tool_list(value, path)
        if found and listed != found:
            raise unsupported(path, "the row has other tools too", "tools")
        found = listed
    return found


class _FromValue(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    who: str = msgspec.field(name="from")
    value: str


class _Conversations(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    conversations: tuple[_FromValue, _FromValue]
    id: str | int | None = None


class _RoleContent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class _Messages(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: tuple[_RoleContent, _RoleContent]
    id: str | int | None = None


def _of_conversations(row: _Conversations) -> Exchange | None:
    question, answer = row.conversations
    if ROLES.get(question.who) == "user" and ROLES.get(answer.who) == "assistant":
        return Exchange(question.value, answer.value, as_id(row.id))
    return None


def _of_messages(row: _Messages) -> Exchange | None:
    question, answer = row.messages
    if ROLES.get(question.role) == "user" and ROLES.get(answer.role) == "assistant":
        return Exchange(question.content, answer.content, as_id(row.id))
    return None


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


PLAIN = tuple(
    PlainRows(shape, exchange, may_be, frozenset(LISTS) - {key})
    for key, shape, exchange, may_be in (
        ("messages", _Messages, _of_messages, lambda row: _is_pair(row.get("messages"))),
        (
            "conversations",
            _Conversations,
            _of_conversations,
            lambda row: _is_pair(row.get("conversations")),
        ),
    )
)
