"""The pages of `shardkit view`: an address becomes data, data becomes a template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from shardkit.errors import ShardkitError, UsageError
from shardkit.report.live.find import Query, before, find
from shardkit.report.live.guard import Guard, Keys
from shardkit.report.live.library import Library, differences
from shardkit.report.live.rejects import read_rejects
from shardkit.report.live.sources import SourceFiles
from shardkit.report.page import charts, facts
from shardkit.report.page.build import ReportOptions, charts_of, look, planned, sources_of
from shardkit.report.page.marks import visible
from shardkit.report.page.rendering import render
from shardkit.version import __version__

N_SOURCES = 500
"""Names of files in the list to choose from."""
N_ROWS_BESIDE = 8
"""Source rows shown below a sample."""


@dataclass
class Pages:
    """What the addresses show."""

    library: Library
    other: Library | None
    """The second dataset, to compare with; None: samples are compared within the first."""
    sources: SourceFiles

    def samples(self, request: Request) -> Response:
        """Twenty samples from a number on, of those that are wanted."""
        query = query_of(request)
        found = find(self.library, query)
        cards = [self.library.card(position) for position in found.positions]
        more = found.looked_to < self.library.n_samples
        names = self.library.dataset.manifest.source_names[:N_SOURCES]
        return self._page(
            "view_samples.html",
            "Samples",
            cards=cards,
            query=query,
            found=found,
            n_samples=self.library.n_samples,
            source_names=names,
            older=query.link(before(self.library, query)) if query.first else "",
            newer=query.link(found.looked_to) if more else "",
        )

    def sample(self, request: Request) -> Response:
        """One sample whole, with its source rows where their file is there."""
        name = f"{request.path_params['shard']}/{request.path_params['key']}"
        position = self.library.find(name)
        card = self.library.card(position, is_long=True)
        rows = [self.sources.row(d.source, d.row) for d in card.documents[:N_ROWS_BESIDE]]
        last = self.library.n_samples - 1
        return self._page(
            "view_sample.html",
            f"Sample {card.anchor}",
            card=card,
            rows=rows if self.sources else [],
            older=f"/jump?to={position - 1}" if position else "",
            newer=f"/jump?to={position + 1}" if position < last else "",
        )

    def jump(self, request: Request) -> Response:
        """Go to the sample that SHARD/KEY, a number or FILE:ROW names."""
        card = self.library.card(self.library.find(request.query_params.get("to", "")))
        return RedirectResponse(f"/sample/{card.anchor}", 303)

    def rejects(self, request: Request) -> Response:
        """Rejected rows, beside what their file holds."""
        reason = request.query_params.get("reason", "")
        start = number_of(request, "start") or 0
        page = read_rejects(self.library.dataset, start, reason=reason)
        totals: dict[str, int] = {}
        for source in self.library.dataset.manifest.sources:
            for name, n in source.rejected.items():
                totals[name] = totals.get(name, 0) + n
        return self._page(
            "view_rejects.html",
            "Rejected rows",
            rejects=[self._reject(line) for line in page.lines],
            reason=reason,
            reasons=sorted(totals.items(), key=lambda item: -item[1]),
            start=start,
            newer=f"/rejects?reason={reason}&start={page.next}" if page.next else "",
            has_sources=bool(self.sources),
            words=charts.words,
        )

    def figures(self, request: Request) -> Response:
        """Identity, ledger and charts."""
        return self._page("view_figures.html", "Figures", **self._figures)

    def compare(self, request: Request) -> Response:
        """Two samples side by side, of one dataset or of two, and how the two differ."""
        other = self.other or self.library
        a, b = (request.query_params.get(name, "") for name in ("a", "b"))
        cards, lines = [], []
        if a and b:
            first, second = self.library.find(a), other.find(b)
            cards = [self.library.card(first, is_long=True), other.card(second, is_long=True)]
            lines = differences(self.library, first, other, second)
        ours, theirs = (dict(facts.identity_rows(one.dataset)) for one in (self.library, other))
        return self._page(
            "view_compare.html",
            "Compare",
            a=a,
            b=b,
            cards=cards,
            differences=lines,
            is_same=self.other is None,
            roots=[visible(one.dataset.root) for one in (self.library, other)],
            identities=[
                (name, ours.get(name, "–"), theirs.get(name, "–"))
                for name in dict.fromkeys([*ours, *theirs])
            ],
        )

    def wrong(self, request: Request, error: Exception) -> Response:
        """What went wrong, in words."""
        message = error.describe() if isinstance(error, ShardkitError) else "There is no such page."
        status = 404 if not isinstance(error, ShardkitError) or _is_usage(error) else 500
        return self._page("view_wrong.html", "Not found", status=status, message=visible(message))

    @cached_property
    def _figures(self) -> dict[str, Any]:
        dataset = self.library.dataset
        manifest = dataset.manifest
        found, _ = look(dataset, ReportOptions(samples=0))
        kind = "pack" if manifest.is_packed else "sample"
        return {
            "manifest": manifest,
            "kind": kind,
            "identity": facts.identity_rows(dataset),
            "sizes": facts.sizes(manifest),
            "survey": found,
            "flow": charts.ledger_flow(manifest),
            "sources": sources_of(dataset, found)[: facts.N_SOURCES_SHOWN],
            "rejects": facts.first_rejects(dataset),
            "findings": facts.findings(manifest),
            "charts": charts_of(dataset, found, kind),
            "commands": facts.commands(dataset.root),
            "words": charts.words,
        } | planned(dataset)

    def _reject(self, line: Any) -> dict[str, Any]:
        beside = self.sources.row(line.source, line.row) if self.sources else None
        return {
            "source": visible(line.source),
            "row": line.row,
            "reason": line.reason,
            "detail": visible(line.detail),
            "text": beside.text if beside else None,
            "note": beside.note if beside else "",
        }

    def _page(self, template: str, heading: str, *, status: int = 200, **values: Any) -> Response:
        root = visible(self.library.dataset.root)
        common = {"what": "view", "heading": heading, "root": root, "version": __version__}
        return HTMLResponse(render(template, **common, **values), status)


def query_of(request: Request) -> Query:
    """The wanted samples as an address names them; raises UsageError."""
    values = request.query_params
    return Query(
        first=number_of(request, "from") or 0,
        text=values.get("text", ""),
        source=values.get("source", ""),
        low=number_of(request, "low") or 0,
        high=number_of(request, "high"),
        cut="cut" in values,
        pictures="pictures" in values,
        unanswered="unanswered" in values,
    )


def number_of(request: Request, name: str) -> int | None:
    """A number from 0 in an address; None when it is not there. Raises UsageError."""
    text = request.query_params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UsageError(f"{name} is not a number from 0", found=text, fix="Correct the address.")
    return int(text)


def make_app(pages: Pages, keys: Keys, port: int) -> Starlette:
    """The ASGI application for one port of this machine."""
    shown: list[tuple[str, Callable[[Request], Response]]] = [
        ("/samples", pages.samples),
        ("/sample/{shard}/{key}", pages.sample),
        ("/jump", pages.jump),
        ("/rejects", pages.rejects),
        ("/figures", pages.figures),
        ("/compare", pages.compare),
    ]
    routes = [Route("/", lambda _: RedirectResponse("/samples", 303))]
    routes += [Route(path, page) for path, page in shown]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, keys=keys, port=port)],
        exception_handlers={ShardkitError: pages.wrong, 404: pages.wrong},
    )


def _is_usage(error: ShardkitError) -> bool:
    return isinstance(error, UsageError)
