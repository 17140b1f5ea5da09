"""Somebody else's template may print much or count far: what it may take of memory is bounded.

Jinja's sandbox keeps a template from files and code, not from `'a' * 10**9`. Here the operators
that make something large of something small (`*`, `+`, `**`) look at the size before they act, and
what is printed is counted while it is made. Time is not bounded: a template that loops without end
hangs, as it would in the model's own server (docs/reference/limits.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import jinja2.sandbox

MAX_OUTPUT = 64 << 20
"""Characters that a template may print of one row, and elements of any text or list in it."""
MAX_BITS = 1 << 16
"""Bits that a whole number in a template may have."""


class TooMuch(jinja2.TemplateRuntimeError):
    """A template that prints, or holds, more than any row needs."""


class BoundedSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox for what cannot be changed, with operators that refuse huge results."""

    intercepted_binops = frozenset({"*", "+", "**"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """`left operator right`; raises TooMuch when that would be larger than a row needs."""
        if operator == "**":
            _check_power(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif _size(left) + _size(right) > MAX_OUTPUT:
            raise TooMuch(f"a text or list of over {MAX_OUTPUT:,} elements")
        return self.binop_table[operator](left, right)


def blocks_of(template: jinja2.Template, variables: Mapping[str, object]) -> Iterator[str]:
    """What a template prints, block by block; raises TooMuch beyond MAX_OUTPUT characters."""
    n = 0
    for block in template.generate(variables):
        n += len(block)
        if n > MAX_OUTPUT:
            raise TooMuch(f"it prints over {MAX_OUTPUT:,} characters")
        yield block


def _check_power(base: Any, exponent: Any) -> None:
    are_whole = isinstance(base, int) and isinstance(exponent, int)
    if are_whole and base.bit_length() * exponent > MAX_BITS:
        raise TooMuch(f"a number of over {MAX_BITS:,} bits")


def _check_product(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise TooMuch(f"a number of over {MAX_BITS:,} bits")
        return
    n, times = (_size(right), left) if isinstance(left, int) else (_size(left), right)
    if isinstance(times, int) and n * times > MAX_OUTPUT:
        raise TooMuch(f"a text or list of over {MAX_OUTPUT:,} elements")


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0
