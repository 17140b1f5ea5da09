"""What commands print: tables and progress for people, JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
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


def note(text: str) -> None:
    """A line for people, on stderr."""
    print(visible(text), file=sys.stderr)


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
    made = Table(title=_cell(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
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
    if title:
        console().print(_cell(title), style="bold")
    for row in rows:
        named = [(columns[i][0], row[i]) for i in range(1, len(columns)) if str(row[i])]
        facts(str(row[0]), named)


def facts(title: str | None, rows: Iterable[tuple[str, object]]) -> None:
    """Names and values, aligned, on stdout."""
    from rich.table import Table

    made = Table(
        title=_cell(title), title_justify="left", title_style="bold", box=None, show_header=False
    )
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
    """1,234,567"""
    return f"{value:,.0f}"


def count(n: int, what: str) -> str:
    """1 shard, 1,234 shards: `what` is a plain noun."""
    return f"{number(n)} {what}{'' if n == 1 else 's'}"


def size(n_bytes: float) -> str:
    """1.2 MB, in powers of 1000."""
    return readable(n_bytes)


def share(part: float, whole: float) -> str:
    """12.3 %, or a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def seconds(value: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 10 min."""
    if value < 60:
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
    """Shows how far long work is."""

    def update(self, n_done: float, n_total: float, detail: str = "") -> None:
        """So much is done of so much."""


class _Silent:
    def update(self, n_done: float, n_total: float, detail: str = "") -> None:
        pass


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._begun = time.monotonic()

    def update(self, n_done: float, n_total: float, detail: str = "") -> None:
        if "/s" not in detail:
            rate = n_done / max(time.monotonic() - self._begun, 1e-3)
            detail = f"{n_done:,.0f} {detail}, {rate:,.1f}/s"
        self._progress.update(self._task, completed=n_done, total=n_total or None, detail=detail)


class _Lines:
    """A JSON object a line, at most one a second, and the last."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begun = time.monotonic()
        self._told = -1.0

    def update(self, n_done: float, n_total: float, detail: str = "") -> None:
        took = time.monotonic() - self._begun
        if took - self._told < 1 and n_done < n_total:
            return
        self._told = took
        line = {"doing": self._title, "done": n_done, "total": n_total or None, "detail": detail}
        print(json.dumps(line | {"seconds": round(took, 1)}), file=sys.stderr, flush=True)


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

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=console(to_stderr=True), transient=True) as progress:
        yield _Bar(progress, progress.add_task(title, total=None, detail=""))


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
