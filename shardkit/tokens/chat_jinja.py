"""In which Jinja environment are chat templates rendered?

The one of transformers' `apply_chat_template`: sandboxed, immutable, the same filters and globals.
Two things are our own: the clock stands still, and `{% generation %}` blocks note their place.
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
import jinja2.sandbox

CLOCK = "strftime_now"
"""The global that asks for the time."""

Span = tuple[int, int]
"""Characters from, to (exclusive)."""


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
