"""A template that would take all memory is refused, and others print what they print elsewhere."""

from __future__ import annotations

import tracemalloc

import jinja2.sandbox
import pytest

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
