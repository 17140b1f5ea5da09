"""What commands print: tables and progress for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_PIPED_WIDTH = 100


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
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:,.0f} B" if unit == "B" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    return ""


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

    def update(self, n_done: float, n_total: float, detail: str = "") -> None:
        self._progress.update(self._task, completed=n_done, total=n_total or None, detail=detail)


@contextmanager
def meter(title: str, *, quiet: bool = False) -> Iterator[Meter]:
    """A progress bar on stderr with time left; nothing when stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
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
