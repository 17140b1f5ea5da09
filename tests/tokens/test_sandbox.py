"""A template that would take all memory is refused, and others print what they print elsewhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import jinja2.sandbox
import pytest
from small_tokenizer import small_tokenizer

from shardkit.conversation import Conversation, Message, Reason, Reject
from shardkit.errors import TemplateError
from shardkit.tokens import load_template
from shardkit.tokens.chat_template import ChatTemplate
from shardkit.tokens.sandbox import MAX_OUTPUT, BoundedSandbox, TooMuch, blocks_of

PLAIN = [
    "{{ 2 + 3 * 4 ** 2 }}",
    "{{ 'ab' * 3 + 'c' }}{{ [1] * 2 + [3] }}{{ (1, 2) + (3,) }}",
    "{{ 3 * 'ab' }}{{ 1.5 * 2 }}{{ 2 ** -1 }}{{ 2 ** 0.5 }}{{ true + true }}",
    "{% for i in range(5) %}{{ i * i }},{% endfor %}",
    "{{ messages[0]['content'] + '\\n' }}",
]
HUGE = [
    "{{ 'a' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'a' }}",
    "{{ ([0] * 10 ** 9) | length }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(x=2 ** 60000) %}{{ n.x * n.x }}",
    "{% set n = namespace(s='a' * 60000000) %}{{ (n.s + n.s) | length }}",
    "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_small_is_printed_as_by_jinja(text: str) -> None:
    """The same text as in Jinja's own sandbox."""
    variables = {"messages": [{"content": "hello"}]}
    expected = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(text).render(variables)
    found = "".join(blocks_of(BoundedSandbox().from_string(text), variables))
    assert found == expected


@pytest.mark.parametrize("text", HUGE)
def test_what_is_huge_is_never_made(text: str) -> None:
    """Refused before the memory is taken: at no time more than the limit and the blocks so far."""
    template = BoundedSandbox().from_string(text)
    tracemalloc.start()
    try:
        with pytest.raises(TooMuch):
            for _ in blocks_of(template, {}):
                pass
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_OUTPUT
    finally:
        tracemalloc.stop()


FOR_ONE_ROW = [
    "{{ 1 // 0 }}",
    "{{ range(1000000) | length }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ 'a' * 10 ** 9 }}",
]
"""What fails for a row that says `bad`: each was a traceback that stopped the pack."""


@pytest.mark.parametrize("failing", FOR_ONE_ROW)
def test_a_row_that_a_template_fails_on_is_rejected(failing: str) -> None:
    """By name, and its neighbours are rendered."""
    text = (
        "{% for m in messages %}{% if m.content == 'bad' %}" + failing + "{% endif %}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate.of_text(text, small_tokenizer(), "ours")
    answer = Message("assistant", "an answer")
    bad = template.render(Conversation((Message("user", "bad"), answer)))
    assert isinstance(bad, Reject)
    assert bad.reason == Reason.TEMPLATE_FAILED
    assert not isinstance(template.render(Conversation((Message("user", "good"), answer))), Reject)


@pytest.mark.parametrize(
    ("name", "text"),
    [("deep.json", '{"INSTRUCTION":' + "[" * 5000 + "]" * 5000 + "}"), ("deep.jinja", "{{" * 5000)],
)
def test_a_template_file_that_is_nested_too_deeply(tmp_path: Path, name: str, text: str) -> None:
    """Is refused as no template, and no RecursionError."""
    (tmp_path / name).write_text(text)
    with pytest.raises(TemplateError):
        load_template(str(tmp_path / name), small_tokenizer())
