"""The charts of a report, from what the indexes say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from shardkit.format.manifest import Manifest
from shardkit.report.page import svg
from shardkit.report.page.survey import N_SHARES, Survey, Tally

N_BARS = 40
"""Bars of a chart in equal steps, at most."""
N_SOURCES = 8
"""Files and reasons that are drawn one by one; the others as one."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, its figures as a table, and perhaps the same on a logarithmic scale."""

    title: str
    note: str
    linear: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    logarithmic: Markup | None = None
    anchor: str = field(default="")


def length_chart(
    lengths: Tally, kind: str, max_length: int | None, *, has_pictures: bool = False
) -> Chart:
    """How long rows are, with max_length as a line; linear, and in powers with logarithms."""
    values, counts = lengths.result()
    top = max(int(values[-1]) if len(values) else 1, max_length or 0)
    width = _round_width(top + 1, N_BARS)
    n = np.bincount(values // width, weights=counts, minlength=top // width + 1).astype(np.int64)
    plain = [svg.Bar(_range(i * width, (i + 1) * width - 1), int(k)) for i, k in enumerate(n)]
    every = max(1, len(plain) // 5)
    ticks = [(float(i), svg.short(i * width)) for i in range(0, len(plain) + 1, every)]
    line = svg.Mark(max_length / width, f"max length {max_length:,}") if max_length else None
    title = f"Lengths of {kind}s"
    unit = "tokens, with pictures as the model sees them" if has_pictures else "tokens"
    axis = svg.Axis(unit, ticks)
    linear = svg.bars(f"{title}, in equal steps", plain, axis, mark=line)
    powers = svg.bars(
        f"{title}, in powers of two, counts as logarithms",
        *_octaves(values, counts, top),
        mark=_octave_mark(max_length),
        is_log=True,
    )
    shown = [[bar.label, f"{bar.n:,}"] for bar in plain if bar.n]
    note = "" if max_length else "There is no max length."
    return Chart(title, note, linear, ("tokens", f"{kind}s"), shown, powers)


def share_chart(title: str, note: str, what: str, counts: NDArray[np.int64], kind: str) -> Chart:
    """Rows by a share between 0 and 100 %."""
    step = 100 // N_SHARES
    bars = [svg.Bar(f"{i * step} to {(i + 1) * step} %", int(n)) for i, n in enumerate(counts)]
    ticks = [(float(i), f"{i * step} %") for i in range(0, N_SHARES + 1, N_SHARES // 4)]
    axis = svg.Axis(what, ticks)
    rows = [[bar.label, f"{bar.n:,}"] for bar in bars if bar.n]
    made = [svg.bars(f"{title}{words}", bars, axis, is_log=is_log) for words, is_log in _SCALES]
    return Chart(title, note, made[0], (what, f"{kind}s"), rows, made[1])


def image_chart(survey: Survey, kind: str) -> Chart:
    """Rows by how many pictures they have."""
    values, counts = survey.images.result()
    most = min(int(values[-1]) if len(values) else 0, N_BARS)
    n = np.bincount(np.minimum(values, most), weights=counts, minlength=most + 1).astype(np.int64)
    names = [f"{i}{' or more' if i == N_BARS else ''}" for i in range(most + 1)]
    bars = [svg.Bar(f"{name} pictures", int(k)) for name, k in zip(names, n, strict=True)]
    every = max(1, len(bars) // 8)
    ticks = [(i + 0.5, str(i)) for i in range(0, most + 1, every)]
    title = f"Pictures of a {kind}"
    axis = svg.Axis("pictures", ticks)
    made = [svg.bars(f"{title}{words}", bars, axis, is_log=is_log) for words, is_log in _SCALES]
    rows = [[str(i), f"{k:,}"] for i, k in zip(names, n.tolist(), strict=True)]
    return Chart(title, "", made[0], ("pictures", f"{kind}s"), rows, made[1])


def ledger_flow(manifest: Manifest) -> Markup:
    """Rows from files to kept and to the reasons of those that were not."""
    sources = sorted(manifest.sources, key=lambda source: -source.n_rows)
    drawn, rest = sources[:N_SOURCES], sources[N_SOURCES:]
    groups = [(source.name, [source]) for source in drawn]
    groups += [(f"{len(rest):,} other files", rest)] if rest else []
    totals: dict[str, int] = {}
    for source in sources:
        for reason, n in source.rejected.items():
            totals[reason] = totals.get(reason, 0) + n
    reasons = [r for r in sorted(totals, key=lambda r: -totals[r]) if totals[r]]
    named, others = reasons[:N_SOURCES], reasons[N_SOURCES:]
    left = [svg.Node(name, sum(s.n_rows for s in group)) for name, group in groups]
    right = [svg.Node("kept", sum(s.n_kept for s in sources))]
    right += [svg.Node(words(reason), totals[reason], "rejected") for reason in named]
    if others:
        right.append(svg.Node("other reasons", sum(totals[r] for r in others), "rejected"))
    streams = []
    for i, (_, group) in enumerate(groups):
        streams.append(svg.Stream(i, 0, sum(s.n_kept for s in group)))
        for k, reason in enumerate(named):
            streams.append(svg.Stream(i, k + 1, sum(s.rejected.get(reason, 0) for s in group)))
        if others:
            n = sum(s.rejected.get(reason, 0) for s in group for reason in others)
            streams.append(svg.Stream(i, len(named) + 1, n))
    n_rows = sum(source.n_rows for source in sources)
    title = f"{n_rows:,} rows of {len(sources):,} files: {right[0].n:,} kept"
    return svg.flow(title, left, right, [stream for stream in streams if stream.n])


def words(reason: str) -> str:
    """The name of a reason or check as words: `no supervised tokens`."""
    return reason.replace("_", " ")


_SCALES = (("", False), (", counts as logarithms", True))


def _octaves(
    values: NDArray[np.int64], counts: NDArray[np.int64], top: int
) -> tuple[list[svg.Bar], svg.Axis]:
    """Four bars to a power of two, and their axis.

    log2(6) * 4 is 10.3, so 6 is in bar 10, whose edges 2 ** 2.5 and 2 ** 2.75 round up to 6 and 7.
    """
    n_bars = 4 * max(1, int(top).bit_length())
    places = np.minimum(np.log2(np.maximum(values, 1)) * 4, n_bars - 1).astype(np.int64)
    n = np.bincount(places, weights=counts, minlength=n_bars).astype(np.int64)
    edges = np.ceil(2 ** (np.arange(n_bars + 1) / 4)).astype(np.int64)
    bars = [
        svg.Bar(_range(int(a), max(int(a), int(b) - 1)), int(k))
        for a, b, k in zip(edges[:-1], edges[1:], n, strict=True)
    ]
    every = 1 if n_bars <= 24 else 2
    powers = range(0, n_bars // 4 + 1, every)
    return bars, svg.Axis("tokens", [(4.0 * power, svg.short(2**power)) for power in powers])


def _octave_mark(max_length: int | None) -> svg.Mark | None:
    if not max_length:
        return None
    return svg.Mark(float(4 * np.log2(max_length)), f"max length {max_length:,}")


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low >= high else f"{low:,} to {high:,}"


def _round_width(top: int, n_bars: int) -> int:
    """A round width of which at most n_bars reach to `top`."""
    raw = max(1, -(-top // n_bars))
    size = int(10 ** (len(str(raw)) - 1))
    return next(m * size for m in (1, 2, 4, 5, 8, 10) if m * size >= raw)
