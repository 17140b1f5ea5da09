"""What does a tokenizer's own chat template print, and which characters are in the loss?

Rendering is what transformers' `apply_chat_template` does (`template_environment.py`). Two ways to
know the assistant's characters: `{% generation %}` blocks where the template has them; else the
row's own beginnings (`answers.py`). What a row trains on is looked for in what was printed
(`lost_text.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
import jinja2.meta
import msgspec
import msgspec.structs

from shardkit.conversation import IMAGE_MARK, Conversation, Message, Reason, Reject
from shardkit.errors import TemplateError
from shardkit.format.canonical import canonical_json, sha256_hex
from shardkit.tokens.answers import (
    Answers,
    Rewritten,
    Span,
    without_empty_think,
    without_parts,
)
from shardkit.tokens.lost_text import find_lost
from shardkit.tokens.messages import (
    ANSWER,
    FAILURES,
    QUESTION,
    Dict,
    Form,
    as_dicts,
    common,
    find_form,
    marked_roles,
)
from shardkit.tokens.sandbox import blocks_of
from shardkit.tokens.template_environment import (
    CLOCK,
    check_date,
    compiled,
    environment,
    render_marked,
)
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.train_rules import DEFAULT, TrainRules, folded

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBE = Conversation((Message("user", QUESTION), Message("assistant", ANSWER)))
_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables of a template that no argument may set."""


_NO_NOTES: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """The characters in the loss, in order, not overlapping."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """How often something was put right in it, or left out, by the fields of `Notes`."""


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
    args: Mapping[str, object] = field(default_factory=dict)
    """Variables that the template reads, and that were set (`enable_thinking`)."""

    @classmethod
    def of_tokenizer(
        cls,
        tokenizer: Tokenizer,
        *,
        date: str | None = None,
        args: Mapping[str, object] | None = None,
    ) -> ChatTemplate:
        """The tokenizer's own; raises TemplateError when it has none or it cannot be masked."""
        text = tokenizer.chat_template
        if text is None:
            raise TemplateError(
                "the tokenizer has no chat template",
                where=tokenizer.name,
                fix="Give a named template (--template qwen_chat ...) or a .jinja file.",
            )
        tool_text = tokenizer.config.chat_templates.get("tool_use")
        return cls.of_text(text, tokenizer, "tokenizer", date=date, tool_text=tool_text, args=args)

    @classmethod
    def of_text(
        cls,
        text: str,
        tokenizer: Tokenizer,
        name: str,
        *,
        date: str | None = None,
        tool_text: str | None = None,
        args: Mapping[str, object] | None = None,
    ) -> ChatTemplate:
        """A template from its text, checked: it parses, its clock is pinned, it can be masked.

        Raises TemplateError when one of these does not hold, or `args` has a name that the
        template never reads.
        """
        prints_date = CLOCK in text or CLOCK in (tool_text or "")
        check_date(name, prints_date, date)
        special = tokenizer.config.special_tokens
        added = tokenizer.backend.get_added_tokens_decoder().values()
        template = cls(
            name=name,
            text=text,
            date=date,
            special_tokens=special,
            end_tokens=tuple(token.content for token in added if token.special),
            tool_text=tool_text,
            args=dict(args or {}),
        )
        template.check()
        return template

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template whose `identity` this is, for the tokenizer that it was made with.

        Raises TemplateError when the text is not a template that can be masked.
        """
        text, tool_text = str(identity["text"]), None
        with suppress(msgspec.DecodeError):
            both = msgspec.json.decode(text, type=dict[str, str])
            text, tool_text = both["default"], both["tool_use"]
        name, date = str(identity["name"]), identity.get("date")
        args = identity.get("args")
        return cls.of_text(text, tokenizer, name, date=date, tool_text=tool_text, args=args)

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.name, self.text, self.date, dict(self.special_tokens))
        return (type(self), (*fields, self.end_tokens, self.tool_text, dict(self.args)))

    @property
    def identity(self) -> dict[str, object]:
        """Name, text, sha256; the date and the arguments where there are any.

        With a template for tools beside the default one, the text is a JSON object of both.
        """
        text = self.text
        if self.tool_text is not None:
            text = canonical_json({"default": self.text, "tool_use": self.tool_text}).decode()
        identity: dict[str, object] = {"name": self.name, "text": text}
        more: dict[str, object] = {} if self.date is None else {"date": self.date}
        if self.args:
            more["args"] = dict(self.args)
        hashed = canonical_json({**more, "text": text}).decode() if more else text
        return {**identity, **more, "sha256": sha256_hex(hashed.encode())}

    @cached_property
    def has_generation(self) -> bool:
        """Does the template itself mark the assistant's words?"""
        return _GENERATION.search(self.text) is not None

    @cached_property
    def form(self) -> Form:
        """What the template takes of messages, as probes showed."""
        return find_form(self._text) or Form()

    @cached_property
    def answers(self) -> Answers:
        """Finds answers in what the template prints."""
        return Answers(self._text, self.end_tokens).learnt()

    @cached_property
    def _n_header(self) -> int:
        tails = self.answers.cut_tails
        return len(self.answers.header) + max(map(len, tails), default=0)

    def check(self) -> None:
        """Raise TemplateError when a question with an answer cannot be printed or masked."""
        _ = self._compiled
        self._check_args()
        found = self.render(_PROBE)
        if isinstance(found, Reject):
            raise TemplateError(
                f"the chat template cannot be masked: {found.detail}",
                where=f"template {self.name!r}",
                fix="Use a template with {% generation %} marks (a .jinja file) or a named one.",
            )
        if ANSWER not in "".join(found.text[a:b] for a, b in found.spans):
            raise TemplateError(
                "the chat template does not print the assistant's words where its marks are",
                where=f"template {self.name!r}",
                found=repr([found.text[a:b] for a, b in found.spans]),
                fix="Correct the {% generation %} marks, or use a named template.",
            )

    def _check_args(self) -> None:
        if not self.args:
            return
        names: set[str] = set()
        for text in (self.text, self.tool_text or ""):
            names |= jinja2.meta.find_undeclared_variables(environment(self.date).parse(text))
        names -= {*_OURS, *self.special_tokens, CLOCK, "raise_exception"}
        for name in self.args:
            if name not in names:
                raise TemplateError(
                    "the chat template has no such argument",
                    where=f"template {self.name!r}",
                    expected=", ".join(sorted(names)) or "none at all",
                    found=name,
                    fix="Correct or leave out --template-arg.",
                )

    def split(self, conversation: Conversation, rules: TrainRules) -> list[Conversation]:
        """One conversation for each answer that is trained, as inference sees it.

        Only where the template prints an answer differently when more messages follow; else the
        conversation as it is.
        """
        printed = self._folded(conversation, rules)
        wanted = rules.wanted(printed.messages)
        if len(wanted) == 0 or not isinstance(self._try(printed, wanted, rules), Rewritten):
            return [conversation]
        n_folded = len(conversation.messages) - len(printed.messages)
        return [self._until(conversation, i + n_folded) for i in wanted]

    def _folded(self, conversation: Conversation, rules: TrainRules) -> Conversation:
        """The conversation as the template gets it: without a system message it does not take."""
        is_folded = rules.fold_system and not self.form.takes_system
        return folded(conversation) if is_folded else conversation

    def _until(self, conversation: Conversation, last: int) -> Conversation:
        """The conversation up to a message, which alone is in the loss."""
        messages = [
            msgspec.structs.replace(message, supervised=i == last and message.supervised)
            for i, message in enumerate(conversation.messages[: last + 1])
        ]
        roles = marked_roles(conversation)
        n_images = 0
        if not isinstance(roles, Reject):
            n_images = sum(m.text.count(IMAGE_MARK) for m in messages if m.role in roles)
        images = conversation.images[:n_images]
        return msgspec.structs.replace(conversation, messages=tuple(messages), images=images)

    def render(self, conversation: Conversation, rules: TrainRules = DEFAULT) -> Rendered | Reject:
        """The conversation's text and its characters in the loss, or why there are none."""
        messages = conversation.messages
        if not any(message.role in rules.roles for message in messages):
            return Reject(Reason.NO_ANSWER)
        notes: dict[str, int] = {}
        given, conversation = conversation, self._folded(conversation, rules)
        if conversation is not given:
            notes["system_folded"] = 1
        wanted = rules.wanted(conversation.messages)
        found = self._try(conversation, wanted, rules, notes)
        if isinstance(found, Rewritten) and rules.history == "last":
            conversation = self._until(conversation, wanted[-1])
            notes["history_untrained"] = len(wanted) - 1
            found = self._try(conversation, wanted[-1:], rules, notes)
        if isinstance(found, Rewritten):
            return _rewritten(found)
        return found

    def _try(
        self,
        conversation: Conversation,
        wanted: list[int],
        rules: TrainRules,
        notes: Mapping[str, int] = _NO_NOTES,
    ) -> Rendered | Rewritten | Reject:
        counts = Counter[str]()
        marks = marked_roles(conversation)
        if isinstance(marks, Reject):
            return marks
        is_raw = rules.tool_calls == "raw"
        dicts = as_dicts(
            conversation.messages, self.form, marks=marks, raw_calls=is_raw, notes=counts
        )
        tools = list(conversation.tools) or None
        found: tuple[str, list[Span]] | Rewritten | Reject
        try:
            if conversation.n_prompt:
                found = self._after_prompt(dicts, conversation.n_prompt, tools)
            else:
                found = self._found(dicts, wanted, tools)
        except FAILURES as error:
            return Reject(Reason.TEMPLATE_FAILED, f"the chat template failed: {error}")
        if isinstance(found, Rewritten | Reject):
            return found
        text, spans = found
        lost = find_lost(text, dicts, wanted, spans, counts, self._n_header)
        if lost is not None:
            return Reject(Reason.TEMPLATE_LOST_TEXT, lost)
        if not rules.train_empty_think:
            trimmed = [without_empty_think(text, span) for span in spans]
            if trimmed != spans:
                counts["empty_thinks"] = sum(a != b for a, b in zip(trimmed, spans, strict=True))
                spans = trimmed
        switched = [i for i in wanted if conversation.messages[i].has_switched_parts]
        if switched:
            whole = without_parts(text, spans, wanted, conversation.messages)
            if isinstance(whole, Reject):
                return whole
            spans = whole
        kept = tuple((a, b) for a, b in spans if b > a)
        return Rendered(text, kept, {**notes, **counts} if notes or counts else _NO_NOTES)

    def _found(
        self, messages: list[Dict], wanted: list[int], tools: list[object] | None
    ) -> tuple[str, list[Span]] | Rewritten | Reject:
        """The text, and the spans: one for each wanted message, or those of all marks."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not self.has_generation or not set(wanted) <= set(answers):
            text = self._text(messages, tools)
            spans = self.answers.spans(messages, wanted, tools, text)
            return (text, spans) if isinstance(spans, list) else spans
        text, spans = self._marked_spans(messages, tools)
        if wanted == answers:
            return text, spans
        if len(spans) != len(answers):
            detail = f"{len(answers)} answers, {len(spans)} generation blocks: cannot mask one"
            return Reject(Reason.TEMPLATE_FAILED, detail)
        return text, [span for i, span in zip(answers, spans, strict=True) if i in set(wanted)]

    def _after_prompt(
        self, messages: list[Dict], n_prompt: int, tools: list[object] | None
    ) -> tuple[str, list[Span]]:
        """The text, and all of it behind the prompt: where it and the prompt's own text part."""
        text = self._text(messages, tools)
        before = self._text(messages[:n_prompt], tools, prompt=True)
        return text, [(common(before, text), len(text))]

    def _marked_spans(
        self, messages: list[Dict], tools: list[object] | None
    ) -> tuple[str, list[Span]]:
        template = self._compiled["tools" if tools and self.tool_text else "default"]
        return render_marked(template, self._variables(messages, tools, False))

    def _text(self, messages: Sequence[Dict], tools: object = None, prompt: bool = False) -> str:
        template = self._compiled["tools" if tools and self.tool_text else "default"]
        return "".join(blocks_of(template, self._variables(messages, tools, prompt)))

    def _variables(
        self, messages: Sequence[Dict], tools: object, prompt: bool
    ) -> dict[str, object]:
        return {
            **self.special_tokens,
            **self.args,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }

    @cached_property
    def _compiled(self) -> dict[str, jinja2.Template]:
        texts = {"default": self.text}
        if self.tool_text is not None:
            texts["tools"] = self.tool_text
        return compiled(texts, self.name, self.date)


def _rewritten(found: Rewritten) -> Reject:
    detail = (
        f"the chat template prints the answer, message {found.message}, differently when more "
        "messages follow: --history split makes one sample of each answer, as inference sees it; "
        "--history last trains the last one"
    )
    return Reject(Reason.TEMPLATE_FAILED, detail)
