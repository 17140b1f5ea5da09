"""Charts as SVG text: bars, and a flow from left to right. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460, 250
_WIDEST = 60
"""The width of a bar, at most."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 16, 44


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar."""

    label: str
    """What the bar stands for, as `0 to 99`."""
    n: int


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands below bars."""

    title: str
    ticks: Sequence[tuple[float, str]]
    """(place in bars from the left edge, text)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A dashed line over the bars, at a place in bars from the left edge."""

    at: float
    label: str


def bars(
    title: str, values: Sequence[Bar], axis: Axis, *, mark: Mark | None = None, is_log: bool = False
) -> Markup:
    """Bars side by side as an <svg>; `is_log`: their heights are logarithms."""
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    most = max((bar.n for bar in values), default=0) or 1
    step = min(width / max(len(values), 1), _WIDEST)
    parts = [_grid(tick, most, height, is_log) for tick in _ticks(most, is_log)]
    for i, bar in enumerate(values):
        tall = height * _share(bar.n, most, is_log)
        if bar.n:
            tall = max(tall, 1.5)
        words = f"{bar.label}: {bar.n:,}"
        top = _TOP + height - tall
        parts.append(_rect(_LEFT + i * step, top, max(step - 1, 0.8), tall, "bar", words))
    parts.append(_line(_LEFT, _TOP + height, WIDTH - _RIGHT, _TOP + height, "axis"))
    for place, text in axis.ticks:
        x = _LEFT + place * step
        parts.append(_line(x, _TOP + height, x, _TOP + height + 4, "axis"))
        parts.append(_text(x, _TOP + height + 18, text, "middle"))
    parts.append(_text(_LEFT + width / 2, HEIGHT - 6, axis.title, "middle", "title"))
    if mark is not None:
        x = _LEFT + mark.at * step
        parts.append(_line(x, _TOP - 4, x, _TOP + height, "limit"))
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(_text(x + (-5 if side == "end" else 5), _TOP + 6, mark.label, side, "limit"))
    return _svg(title, parts, WIDTH, HEIGHT)


@dataclass(frozen=True, slots=True)
class Stream:
    """How much of what is on the left, by its number, goes to what is on the right."""

    left: int
    right: int
    n: int


@dataclass(frozen=True, slots=True)
class Node:
    """Where streams begin or end."""

    label: str
    n: int
    kind: str = "kept"
    """kept or rejected: its colour."""


_BAR, _SLOT = 10, 38


def flow(
    title: str, left: Sequence[Node], right: Sequence[Node], streams: Sequence[Stream]
) -> Markup:
    """Nodes in two columns and bands between them, as wide as they have rows, as an <svg>."""
    height = max(_SLOT * max(len(left), len(right)) + 60, 200)
    ours, theirs = _slots(left, height), _slots(right, height)
    used_left, used_right = [0.0] * len(left), [0.0] * len(right)
    parts = []
    for stream in streams:
        a, b = left[stream.left], right[stream.right]
        y1, tall1 = ours[stream.left]
        y2, tall2 = theirs[stream.right]
        h1, h2 = tall1 * stream.n / max(a.n, 1), tall2 * stream.n / max(b.n, 1)
        y1, y2 = y1 + used_left[stream.left], y2 + used_right[stream.right]
        used_left[stream.left] += h1
        used_right[stream.right] += h2
        words = f"{a.label} → {b.label}: {stream.n:,} rows"
        parts.append(_band(y1, max(h1, 0.7), y2, max(h2, 0.7), b.kind, words))
    for x, side, nodes, slots in (
        (0, "start", left, ours),
        (WIDTH - _BAR, "end", right, theirs),
    ):
        for node, (y, tall) in zip(nodes, slots, strict=True):
            kind = "source" if side == "start" else node.kind
            words = f"{node.label}: {node.n:,} rows"
            parts.append(_rect(x, y, _BAR, tall, f"node {kind}", words))
            at = x + _BAR + 6 if side == "start" else x - 6
            middle = y + tall / 2
            parts.append(_text(at, middle - 2, shortened(node.label), side, "name"))
            parts.append(_text(at, middle + 13, f"{node.n:,}", side))
    return _svg(title, parts, WIDTH, height)


def shortened(text: str, n: int = 26) -> str:
    """At most n characters, the middle left out."""
    return text if len(text) <= n else f"{text[: n // 2]}…{text[-(n - n // 2 - 1) :]}"


def _slots(nodes: Sequence[Node], height: float) -> list[tuple[float, float]]:
    """(top, height) of each node: by rows, but never closer than a label is tall."""
    total = sum(node.n for node in nodes) or 1
    spare = height - _SLOT * len(nodes)
    top, found = 0.0, []
    for node in nodes:
        tall = (spare + _SLOT) * node.n / total
        slot = _SLOT + spare * node.n / total
        tall = min(max(tall, 1.5), slot - 4)
        found.append((top + (slot - tall) / 2, tall))
        top += slot
    return found


def _band(y1: float, h1: float, y2: float, h2: float, kind: str, words: str) -> Markup:
    x1, x2 = _BAR, WIDTH - _BAR
    middle = (x1 + x2) / 2
    upper = f"M{x1} {y1:.1f}C{middle} {y1:.1f} {middle} {y2:.1f} {x2} {y2:.1f}"
    lower = f"L{x2} {y2 + h2:.1f}C{middle} {y2 + h2:.1f} {middle} {y1 + h1:.1f} {x1} {y1 + h1:.1f}Z"
    return _shape("path", f"band {kind}", words, d=upper + lower)


def _share(n: int, most: int, is_log: bool) -> float:
    return math.log1p(n) / math.log1p(most) if is_log else n / most


def _ticks(most: int, is_log: bool) -> list[int]:
    """Round counts at which a line is drawn."""
    if is_log:
        return [10**power for power in range(int(math.log10(most)) + 1)]
    power = 10 ** int(math.log10(most))
    unit = next(u for u in (power // 5, power // 2, power, 2 * power) if u and most / u <= 5)
    return list(range(unit, most + 1, unit))


def _grid(n: int, most: int, height: float, is_log: bool) -> Markup:
    y = _TOP + height * (1 - _share(n, most, is_log))
    return _line(_LEFT, y, WIDTH - _RIGHT, y, "grid") + _text(_LEFT - 6, y + 4, short(n), "end")


def short(n: float) -> str:
    """1,234 as 1,234; 12345 as 12.3k; 1234567 as 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            scaled = n / (1e3 if unit == "k" else size)
            return f"{scaled:.1f}".removesuffix(".0") + unit
    return f"{n:,.0f}"


def _svg(title: str, parts: Sequence[Markup], width: float, height: float) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(_n(width), _n(height), title) + Markup("").join(parts) + Markup("</svg>")


def _shape(tag: str, kind: str, words: str, **places: str) -> Markup:
    """An element that tells `words` under the pointer."""
    names = Markup("").join(Markup(' {}="{}"').format(k, v) for k, v in places.items())
    inner = Markup("<title>{}</title>").format(words) if words else ""
    return Markup('<{} class="{}"{}>{}</{}>').format(tag, kind, names, inner, tag)


def _rect(x: float, y: float, width: float, height: float, kind: str, words: str) -> Markup:
    return _shape("rect", kind, words, x=_n(x), y=_n(y), width=_n(width), height=_n(height))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return _shape("line", kind, "", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))


def _text(x: float, y: float, words: str, side: str, kind: str = "label") -> Markup:
    text = Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>')
    return text.format(_n(x), _n(y), side, kind, words)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
