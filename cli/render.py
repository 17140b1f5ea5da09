"""What commands print: tables and progress for people, JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from shardkit.units import readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_PIPED_WIDTH = 100
_NARROW = 72
"""Columns of a terminal from which on a table is drawn as one, whatever it holds."""


def console(*, to_stderr: bool = False) -> Console:
    """A rich console; without colour and 100 columns wide when it is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_json(value: object) -> None:
    """The value as indented JSON on stdout; structs and dataclasses as objects."""
    data = msgspec.to_builtins(value, str_keys=True)
    text = json.dumps(data, indent=2, ensure_ascii=False)
    print("".join(json.dumps(c)[1:-1] if _drives(c) and c != "\n" else c for c in text))


_as_json = False


def notes_as_json(wanted: bool) -> None:
    """Whether notes are JSON lines from now on, as --log-json wants all of stderr."""
    global _as_json
    _as_json = wanted


def note(text: str) -> None:
    """A line for people, on stderr; with --log-json an object with `note`."""
    print(json.dumps({"note": text}) if _as_json else visible(text), file=sys.stderr)


def table(
    title: str | None,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[object]],
    *,
    total: Sequence[object] | None = None,
) -> None:
    """A table on stdout; a column is (heading, "left" or "right"). Cells are text, not markup."""
    from rich import box
    from rich.table import Table

    rows = [list(row) for row in rows]
    needed = sum(
        3 + max(len(str(cells[i])) for cells in ([c[0] for c in columns], *rows))
        for i in range(len(columns))
        if i == 0 or columns[i][1] == "right"
    )
    if console().width < min(needed, _NARROW) and len(columns) > 2:
        _stacked(title, columns, [*rows, *([total] if total is not None else [])])
        return
    _titled(title)
    made = Table(box=box.SIMPLE_HEAD)
    made.show_footer = total is not None
    for i, (heading, side) in enumerate(columns):
        made.add_column(
            heading,
            _cell(total[i]) if total is not None else "",
            justify="right" if side == "right" else "left",
            overflow="fold",
            no_wrap=side == "right",
        )
    for row in rows:
        made.add_row(*map(_cell, row))
    console().print(made)


def _stacked(
    title: str | None, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]]
) -> None:
    """A table for a narrow terminal: each row as names and values, its first cell above them."""
    _titled(title)
    for row in rows:
        named = [(columns[i][0], row[i]) for i in range(1, len(columns)) if str(row[i])]
        facts(str(row[0]), named)


def _titled(title: str | None) -> None:
    """The heading of a table, which is not wrapped to the table's width."""
    if title:
        console().print(_cell(title), style="bold")


def facts(title: str | None, rows: Iterable[tuple[str, object]]) -> None:
    """Names and values, aligned, on stdout."""
    from rich.table import Table

    _titled(title)
    made = Table(box=None, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(f"  {name}", _cell(value))
    console().print(made)


def _cell(value: object) -> Any:
    """Text that is neither markup nor control characters; None stays None."""
    from rich.text import Text

    return value if value is None or isinstance(value, Text) else Text(visible(str(value)))


def number(value: float) -> str:
    """A number rounded to a whole one, with commas: 1,234,567."""
    return f"{value:,.0f}"


def count(n: int, what: str) -> str:
    """A number of things, as "1 shard" or "1,234 shards"; `what` is a noun with a plural in s."""
    return f"{number(n)} {what}{'' if n == 1 else 's'}"


def size(n_bytes: float) -> str:
    """Bytes as people read them: 1.2 MB, in powers of 1,000."""
    return readable(n_bytes)


def share(part: float, whole: float) -> str:
    """A part of a whole, as "12.3 %"; "-" when the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def seconds(value: float) -> str:
    """A time in seconds as people read it: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def visible(text: str) -> str:
    """The text with control characters shown as escapes: data must not drive the terminal."""
    return "".join(ascii(c)[1:-1] if _drives(c) and c not in "\n\t" else c for c in text)


def _drives(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cf", "Cs")


class Meter(Protocol):
    """Shows how far long work is, one stage after another."""

    def begin(self, title: str) -> None:
        """Name what is done now; another name begins another stage."""

    def update(self, n_done: float, n_total: float, unit: str) -> None:
        """Show that so many bytes, rows ... of so many are done; a total of 0 is not known."""


class _Silent:
    def begin(self, title: str) -> None:
        pass

    def update(self, n_done: float, n_total: float, unit: str) -> None:
        pass


class _Pace:
    """The rate of a stage, counted from its first news on: what was there before is not speed."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._first: tuple[float, float] | None = None

    def rate(self, n_done: float) -> float:
        """Units a second when `n_done` of them are done now."""
        now = time.monotonic()
        if self._first is None:
            self._first = (n_done, now)
            return n_done / max(now - self.begun, 1e-3)
        first, at = self._first
        return max(n_done - first, 0) / max(now - at, 1e-3)


def _amount(n: float, unit: str) -> str:
    return size(n) if unit == "bytes" else f"{number(n)} {unit}".rstrip()


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress = progress
        self._task = task
        self._title = title
        self._pace = _Pace()

    def begin(self, title: str) -> None:
        self._progress.start()  # not before there is news: it is a thread, and pack may fork first
        if title != self._title:
            self._title, self._pace = title, _Pace()
            self._progress.reset(self._task, description=title, total=None, detail="")

    def update(self, n_done: float, n_total: float, unit: str) -> None:
        self._progress.start()
        rate = self._pace.rate(n_done)
        pace = size(rate) if unit == "bytes" else number(rate) if rate >= 10 else f"{rate:.1f}"
        detail = f"{_amount(n_done, unit)}, {pace}/s" if unit else ""
        self._progress.update(self._task, completed=n_done, total=n_total or None, detail=detail)


class _Lines:
    """A JSON object a line: at most one a second of a stage, and its last."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._pace = _Pace()
        self._told = -1.0

    def begin(self, title: str) -> None:
        if title != self._title:
            self._title, self._pace, self._told = title, _Pace(), -1.0

    def update(self, n_done: float, n_total: float, unit: str) -> None:
        rate, took = self._pace.rate(n_done), time.monotonic() - self._pace.begun
        if self._told >= 0 and took - self._told < 1 and (n_done < n_total or not n_total):
            return
        self._told = took
        left = round((n_total - n_done) / rate, 1) if n_total and rate else None
        line = {"doing": self._title, "done": n_done, "total": n_total or None, "unit": unit}
        line |= {"per_second": round(rate, 1), "seconds": round(took, 1), "seconds_left": left}
        print(json.dumps(line), file=sys.stderr, flush=True)


def add_progress_options(parser: argparse.ArgumentParser) -> None:
    """Add what a long command tells while it runs."""
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but what is wrong")
    parser.add_argument(
        "--log-json", action="store_true", help="progress as JSON lines on stderr, for programs"
    )


@contextmanager
def meter(title: str, args: argparse.Namespace) -> Iterator[Meter]:
    """A progress bar on stderr with rate and time left; nothing when stderr is not a terminal.

    `args`: parsed, of a command with the options of `add_progress_options`.
    """
    if args.log_json:
        yield _Lines(title)
        return
    if args.quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = console(to_stderr=True)
    bar: list[Any] = [BarColumn(bar_width=28 if screen.width >= 100 else 10)]
    detail: list[Any] = [TextColumn("{task.fields[detail]}")]
    columns: list[Any] = [
        TextColumn("{task.description}"),
        *(bar if screen.width >= 70 else []),
        TaskProgressColumn(),
        *(detail if screen.width >= 55 else []),
        *([TimeElapsedColumn(), TextColumn("left")] if screen.width >= 90 else []),
        TimeRemainingColumn(compact=True),
    ]
    progress = Progress(*columns, console=screen, transient=True)
    with _shown():
        try:
            yield _Bar(progress, progress.add_task(title, total=None, detail=""), title)
        finally:
            progress.stop()


def adding(meter: Meter) -> Callable[[int, int], None]:
    """What to call with (bytes done since the last call, all bytes), so that the meter shows it."""
    done = 0

    def show(n_bytes: int, n_total: int) -> None:
        nonlocal done
        done += n_bytes
        meter.update(done, n_total, "bytes")

    return show


_n_shown = 0


@contextmanager
def _shown() -> Iterator[None]:
    global _n_shown
    _n_shown += 1
    try:
        yield
    finally:
        _n_shown -= 1


def is_metered() -> bool:
    """Whether a bar is on the terminal now: there is room for one."""
    return _n_shown > 0


def masked(pieces: Iterable[tuple[str, bool]]) -> Any:
    """Text with its loss mask: supervised pieces are bold green, or stand in ⟦ ⟧ when piped."""
    from rich.text import Text

    shown = Text()
    is_plain = not console().is_terminal
    for text, is_supervised in pieces:
        words = visible(text)
        if is_supervised and is_plain:
            shown.append(f"⟦{words}⟧")
        else:
            shown.append(words, style="bold green" if is_supervised else "dim")
    return shown
