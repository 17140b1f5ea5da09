"""What does a tokenizer's own chat template print, and which characters are the assistant's?

Rendering is what transformers' `apply_chat_template` does, in the same Jinja environment
(sandboxed, immutable, the same filters and globals). Two things are our own: the clock stands
still, and `{% generation %}` blocks note their place. Two ways to know the assistant's characters:
these blocks where the template has them; else by rendering the messages up to each answer and
finding that text at the start of the whole. A template for which neither works is refused when it
is loaded.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

from shardkit.conversation import Conversation, Message, Reason, Reject
from shardkit.errors import TemplateError
from shardkit.format.canonical import canonical_json, sha256_hex
from shardkit.tokens.tokenizer import Tokenizer

CLOCK = "strftime_now"
"""The global that asks for the time."""

Span = tuple[int, int]
"""Characters from, to (exclusive)."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBES = (
    (
        Message("user", "What is the first question?"),
        Message("assistant", "This is the first answer."),
    ),
    (
        Message("user", "What is the first question?"),
        Message("assistant", "This is the first answer."),
        Message("user", "And what is the second question?"),
        Message("assistant", "This is the second answer."),
    ),
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """The supervised characters, in order, not overlapping."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in Jinja with what it needs to render."""

    name: str
    text: str
    date: str | None = None
    """YYYY-MM-DD: what `strftime_now` says; None where the template never asks."""
    special_tokens: Mapping[str, object] = field(default_factory=dict)
    end_tokens: tuple[str, ...] = ()
    """Special tokens of the tokenizer: after one, white space is not the assistant's."""
    tool_text: str | None = None
    """Another template for conversations with tools (`tool_use`), where the tokenizer has one."""

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer, *, date: str | None = None) -> ChatTemplate:
        """The tokenizer's own; raises TemplateError when it has none or it cannot be masked."""
        text = tokenizer.chat_template
        if text is None:
            raise TemplateError(
                "the tokenizer has no chat template",
                where=tokenizer.name,
                fix="Give a named template (--template qwen_chat ...) or a .jinja file.",
            )
        tool_text = tokenizer.config.chat_templates.get("tool_use")
        return cls.of_text(text, tokenizer, "tokenizer", date=date, tool_text=tool_text)

    @classmethod
    def of_text(
        cls,
        text: str,
        tokenizer: Tokenizer,
        name: str,
        *,
        date: str | None = None,
        tool_text: str | None = None,
    ) -> ChatTemplate:
        """A template from its text, checked: it parses, its clock is pinned, it can be masked."""
        prints_date = CLOCK in text or CLOCK in (tool_text or "")
        _check_date(name, prints_date, date)
        special = tokenizer.config.special_tokens
        added = tokenizer.backend.get_added_tokens_decoder().values()
        template = cls(
            name=name,
            text=text,
            date=date,
            special_tokens=special,
            end_tokens=tuple(token.content for token in added if token.special),
            tool_text=tool_text,
        )
        template.check()
        return template

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template that gave this identity."""
        text, tool_text = str(identity["text"]), None
        with suppress(msgspec.DecodeError):
            both = msgspec.json.decode(text, type=dict[str, str])
            text, tool_text = both["default"], both["tool_use"]
        name, date = str(identity["name"]), identity.get("date")
        return cls.of_text(text, tokenizer, name, date=date, tool_text=tool_text)

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.name, self.text, self.date, dict(self.special_tokens))
        return (type(self), (*fields, self.end_tokens, self.tool_text))

    @property
    def identity(self) -> dict[str, object]:
        """Name, text, sha256, and the date where one is printed."""
        text = self.text
        if self.tool_text is not None:
            text = canonical_json({"default": self.text, "tool_use": self.tool_text}).decode()
        identity: dict[str, object] = {"name": self.name, "text": text}
        hashed = text
        if self.date is not None:
            identity["date"] = self.date
            hashed = canonical_json({"date": self.date, "text": text}).decode()
        identity["sha256"] = sha256_hex(hashed.encode())
        return identity

    @property
    def has_generation(self) -> bool:
        """Does the template itself mark the assistant's words?"""
        return _GENERATION.search(self.text) is not None

    @cached_property
    def keeps_history(self) -> bool:
        """Is an earlier answer printed the same when more messages follow?"""
        return self.has_generation or isinstance(self._probe(_PROBES[1]), Rendered)

    def check(self) -> None:
        """Raise TemplateError when the template cannot be used for training."""
        _ = self._compiled
        found = self._probe(_PROBES[0])
        if isinstance(found, Reject):
            raise TemplateError(
                f"the chat template cannot be masked: {found.detail}",
                where=f"template {self.name!r}",
                fix="Use a template with {% generation %} marks (a .jinja file) or a named one.",
            )
        if "This is the first answer." not in "".join(found.text[a:b] for a, b in found.spans):
            raise TemplateError(
                "the chat template does not print the assistant's words where its marks are",
                where=f"template {self.name!r}",
                found=repr([found.text[a:b] for a, b in found.spans]),
                fix="Correct the {% generation %} marks, or use a named template.",
            )

    def render(self, conversation: Conversation) -> Rendered | Reject:
        """The conversation's text and its supervised characters, or why there are none."""
        messages = conversation.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            return Reject(Reason.NO_ANSWER)
        if len(answers) > 1 and not self.keeps_history:
            detail = (
                "the chat template prints earlier answers differently when more messages follow, "
                "so a conversation of several turns cannot be masked"
            )
            return Reject(Reason.TEMPLATE_FAILED, detail)
        return self._render(messages, answers, list(conversation.tools) or None)

    def _probe(self, messages: Sequence[Message]) -> Rendered | Reject:
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        return self._render(messages, answers, None)

    def _render(
        self, messages: Sequence[Message], answers: list[int], tools: list[object] | None
    ) -> Rendered | Reject:
        dicts = [_as_dict(message) for message in messages]
        try:
            found = self._found(dicts, answers, tools)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            return Reject(Reason.TEMPLATE_FAILED, f"the chat template failed: {error}")
        if isinstance(found, Reject):
            return found
        text, spans = found
        wanted = [messages[i].supervised for i in answers]
        if not all(wanted):
            if len(spans) != len(answers):
                detail = f"{len(answers)} answers, {len(spans)} generation blocks: cannot mask one"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            spans = [span for span, is_wanted in zip(spans, wanted, strict=True) if is_wanted]
        return Rendered(text, tuple((a, b) for a, b in spans if b > a))

    def _found(
        self, messages: list[dict[str, object]], answers: list[int], tools: list[object] | None
    ) -> tuple[str, list[Span]] | Reject:
        if self.has_generation:
            return self._marked_spans(messages, tools)
        return self._prefix_spans(messages, answers, tools)

    def _marked_spans(
        self, messages: list[dict[str, object]], tools: list[object] | None
    ) -> tuple[str, list[Span]]:
        template = self._compiled["tools" if tools and self.tool_text else "default"]
        return render_marked(template, self._variables(messages, tools, False))

    def _prefix_spans(
        self, messages: list[dict[str, object]], answers: list[int], tools: list[object] | None
    ) -> tuple[str, list[Span]] | Reject:
        whole = self._text(messages, tools)
        spans = []
        for i in answers:
            if i == 0:
                return Reject(Reason.TEMPLATE_FAILED, "the conversation begins with an answer")
            before = self._text(messages[:i], tools, add_generation_prompt=True)
            until = whole if i + 1 == len(messages) else self._text(messages[: i + 1], tools)
            if not until.startswith(before):
                detail = "its prompt for an answer is not the beginning of the answered text"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            if not whole.startswith(until):
                detail = "it prints an earlier answer differently when more messages follow"
                return Reject(Reason.TEMPLATE_FAILED, detail)
            spans.append((len(before), self._answer_end(whole, len(before), len(until))))
        return whole, spans

    def _answer_end(self, text: str, start: int, end: int) -> int:
        """`end`, less the white space that follows an end token: that is not the answer's."""
        answer = text[start:end].rstrip()
        return start + len(answer) if answer.endswith(self.end_tokens) else end

    def _text(
        self,
        messages: list[dict[str, object]],
        tools: list[object] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        template = self._compiled["tools" if tools and self.tool_text else "default"]
        return template.render(self._variables(messages, tools, add_generation_prompt))

    def _variables(
        self, messages: list[dict[str, object]], tools: list[object] | None, prompt: bool
    ) -> dict[str, object]:
        return {
            **self.special_tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }

    @cached_property
    def _compiled(self) -> dict[str, jinja2.Template]:
        made = environment(self.date)
        texts = {"default": self.text}
        if self.tool_text is not None:
            texts["tools"] = self.tool_text
        try:
            return {name: made.from_string(text) for name, text in texts.items()}
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"not a Jinja template: {error.message}",
                where=f"template {self.name!r}, line {error.lineno}",
                fix="Correct the template.",
            ) from error


def _check_date(name: str, prints_date: bool, date: str | None) -> None:
    where = f"template {name!r}"
    if prints_date and date is None:
        raise TemplateError(
            "the chat template prints today's date, so the same input would give other tokens "
            "tomorrow",
            where=where,
            fix="Pin the date: --date 2024-07-26 (in Python: date=...).",
        )
    if date is None:
        return
    if not prints_date:
        raise TemplateError(
            "the chat template prints no date", where=where, fix="Leave the date out."
        )
    try:
        datetime.date.fromisoformat(date)
    except ValueError as error:
        raise TemplateError(
            "not a date", where=where, expected="YYYY-MM-DD", found=date, fix="Correct the date."
        ) from error


def _as_dict(message: Message) -> dict[str, object]:
    value: dict[str, object] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        value["tool_calls"] = list(message.tool_calls)
    if message.name is not None:
        value["name"] = message.name
    return value


def environment(date: str | None) -> jinja2.Environment:
    """The environment, with the clock at `date` (YYYY-MM-DD), or with none."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    if date is not None:
        made.globals[CLOCK] = datetime.datetime.fromisoformat(date).strftime
    return made


def render_marked(
    template: jinja2.Template, variables: Mapping[str, object]
) -> tuple[str, list[Span]]:
    """The text of a template, and where its generation blocks are in it."""
    extension = template.environment.extensions[Generation.identifier]
    return cast(Generation, extension).track(template, variables)


class Generation(jinja2.ext.Extension):
    """`{% generation %}`: prints its body and, while tracking, notes where it is in the text."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self._blocks: list[str] | None = None
        self._spans: list[Span] = []

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        text = caller()
        if self._blocks is not None:
            start = sum(map(len, self._blocks))
            self._spans.append((start, start + len(text)))
        return text

    def track(
        self, template: jinja2.Template, variables: Mapping[str, object]
    ) -> tuple[str, list[Span]]:
        """The text of the template and where its generation blocks are in it."""
        self._blocks, self._spans = [], []
        try:
            for block in template.generate(variables):
                self._blocks.append(block)
            return "".join(self._blocks), self._spans
        finally:
            self._blocks = None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
