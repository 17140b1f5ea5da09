"""The Jinja environment of chat templates: that of transformers, bounded, with a clock that stands.

It has the filters, globals and extensions of `apply_chat_template`, over `BoundedSandbox`; and
`{% generation %}` blocks note where they are in the text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from shardkit.errors import TemplateError
from shardkit.tokens.answers import Span
from shardkit.tokens.sandbox import BoundedSandbox, blocks_of

CLOCK = "strftime_now"
"""The global that asks for the time."""


def environment(date: str | None) -> jinja2.Environment:
    """The environment of chat templates, its clock at `date` (YYYY-MM-DD); None: no clock."""
    made = BoundedSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    if date is not None:
        made.globals[CLOCK] = datetime.datetime.fromisoformat(date).strftime
    return made


def compiled(texts: Mapping[str, str], name: str, date: str | None) -> dict[str, jinja2.Template]:
    """The texts of a template as Jinja has them, by the same names; raises TemplateError."""
    made = environment(date)
    try:
        return {key: made.from_string(text) for key, text in texts.items()}
    except RecursionError as error:
        raise TemplateError(
            "nested too deeply for a Jinja template",
            where=f"template {name!r}",
            fix="Use another template.",
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"not a Jinja template: {error.message}",
            where=f"template {name!r}, line {error.lineno}",
            fix="Correct the template.",
        ) from error


def check_date(name: str, prints_date: bool, date: str | None) -> None:
    """Raise TemplateError where a date is needed and missing, given for nothing, or none."""
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
        """The block as a call of `_body`, which gets what the block prints."""
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
            for block in blocks_of(template, variables):
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
