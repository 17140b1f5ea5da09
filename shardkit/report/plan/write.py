"""A plan as a file: Markdown, or one HTML page."""

from __future__ import annotations

import html
from pathlib import Path

from shardkit.errors import UsageError
from shardkit.format.atomic import appear
from shardkit.report.page.marks import visible
from shardkit.report.page.rendering import render
from shardkit.report.plan.tables import tables_of
from shardkit.report.plan.what import Plan
from shardkit.storage.open import path_here
from shardkit.version import __version__

SUFFIXES = (".md", ".html")


def write_plan(plan: Plan, out: Path) -> None:
    """Write the plan as Markdown or as one HTML page, by the name of the file.

    Raises UsageError for another name, and when there is no folder for it.
    """
    check_name(out)
    text = markdown_of(plan) if out.suffix == ".md" else page_of(plan)
    with appear(out) as file:
        file.write(text.encode())


def check_name(out: Path) -> None:
    """Raise UsageError when no plan can be written there."""
    path_here(out, "a plan")
    if out.suffix not in SUFFIXES:
        raise UsageError(
            "a plan is written as Markdown or HTML",
            where=str(out),
            expected="a name that ends with .md or .html",
            fix="Correct --out, or ask for --json.",
        )
    if not out.parent.is_dir():
        raise UsageError(
            "there is no such folder", where=str(out.parent), fix="Make it, or give another --out."
        )


def markdown_of(plan: Plan) -> str:
    """The plan as Markdown; what comes from the data is escaped."""
    lines = [f"# Plan of {_plain(plan.root)}", ""]
    for table in tables_of(plan.runs):
        lines += [f"## {table.title}", "", f"| {' | '.join(table.headings)} |"]
        lines += ["|" + "--:|" * len(table.headings)]
        lines += [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in table.rows] + [""]
    for title, sentences in (("Advice", plan.advice), ("Notes", plan.notes)):
        lines += [f"## {title}", "", *(f"- {_plain(one)}" for one in sentences), ""]
    return "\n".join(lines)


def page_of(plan: Plan) -> str:
    """The plan as one HTML page, made of the templates of the report."""
    root = visible(plan.root)
    return render(
        "plan_page.html",
        what="plan",
        root=root,
        title=Path(root).name or root,
        version=__version__,
        plan_tables=tables_of(plan.runs),
        plan=plan,
    )


def _plain(text: str) -> str:
    """Text that Markdown takes as it is: one line, no markup."""
    line = html.escape(" ".join(visible(text).split()), quote=False)
    for sign in "\\`*_[]|!":
        line = line.replace(sign, f"&#{ord(sign)};")
    return line
