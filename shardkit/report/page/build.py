"""From a dataset to its report: one pass over the indexes, then the chosen samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.atomic import appear
from shardkit.report.page import charts, facts
from shardkit.report.page.cards import Card, Cards
from shardkit.report.page.choose import Chooser
from shardkit.report.page.marks import Marker, visible
from shardkit.report.page.rendering import render
from shardkit.report.page.survey import Survey, images_of, places_of, shards_to_read
from shardkit.report.plan.make import can_plan, make_plan
from shardkit.report.plan.tables import tables_of
from shardkit.report.plan.what import PlanOptions, Varied
from shardkit.storage.open import path_here
from shardkit.version import __version__

BUDGET = 3_500_000
"""Bytes that the samples of a page take at most; the rest of a page is below 1 MB."""

PLANNED = Varied(world_sizes=(8, 64, 512), batch_sizes=(1, 4))
"""The runs that a page plans."""
PLAN_ROWS = 1 << 17
"""Rows of each run of PLANNED that are looked at."""

Progress = Callable[[int, int], None]
"""Called with (shards read, shards to read)."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report shows."""

    samples: int = 40
    """How many samples, of all kinds."""
    text: bool = True
    """Whether the text of samples is shown."""
    images: bool = True
    """Whether thumbnails of the samples' pictures are shown."""
    shards: int | None = None
    """Shards whose indexes are read; None: all, of a URL 8, of a very large dataset some."""
    budget: int = BUDGET
    """Bytes of samples in the page; those beyond are left out."""

    def __post_init__(self) -> None:
        if self.samples < 0 or (self.shards is not None and self.shards < 1):
            raise UsageError(
                "a report has 0 samples or more, of 1 shard or more",
                found=f"samples {self.samples}, shards {self.shards}",
                fix="Correct --samples or --shards.",
            )


@dataclass(frozen=True, slots=True)
class Source:
    """A row of the table by source file."""

    name: str
    n_rows: int
    n_kept: int
    rejected: list[tuple[str, int]]
    n_truncated: int
    n_parts: int
    n_tokens: int
    n_images: int


def write_report(
    dataset: Dataset,
    out: Path,
    options: ReportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> int:
    """Write the report of a dataset as one HTML file; its bytes.

    Raises CorruptShard or MissingShard when an index or a sample cannot be read, UsageError when
    there is no folder for the file.
    """
    out = path_here(out, "a report")
    if not out.parent.is_dir():
        raise UsageError(
            "there is no such folder", where=str(out.parent), fix="Make it, or give another --out."
        )
    data = make_report(dataset, options or ReportOptions(), progress=progress).encode()
    with appear(out) as file:
        file.write(data)
    return len(data)


def make_report(
    dataset: Dataset, options: ReportOptions, *, progress: Progress | None = None
) -> str:
    """The report of a dataset as HTML; raises CorruptShard or MissingShard."""
    manifest = dataset.manifest
    found, chooser = look(dataset, options, progress)
    cards, n_left_out = chosen_cards(dataset, chooser, options)
    kind = "pack" if manifest.is_packed else "sample"
    return render(
        "report.html",
        title=visible(Path(dataset.root).name or dataset.root),
        root=visible(dataset.root),
        version=__version__,
        manifest=manifest,
        kind=kind,
        identity=facts.identity_rows(dataset),
        sizes=facts.sizes(manifest),
        survey=found,
        flow=charts.ledger_flow(manifest),
        sources=sources_of(dataset, found)[: facts.N_SOURCES_SHOWN],
        rejects=facts.first_rejects(dataset),
        findings=facts.findings(manifest),
        charts=charts_of(dataset, found, kind),
        commands=facts.commands(dataset.root),
        **planned(dataset, options.shards),
        cards=cards,
        n_left_out=n_left_out,
        options=options,
        card_sources=sorted({source for card in cards for source in card.sources}),
        words=charts.words,
    )


def planned(dataset: Dataset, shards: int | None = None) -> dict[str, object]:
    """What a page shows of a few runs: `plan`, its `plan_tables`, and what to type for others.

    `plan` is None where no run can be planned.
    """
    if not can_plan(dataset):
        return {"plan": None}
    plan = make_plan(dataset, PLANNED, PlanOptions(shards=shards, max_rows=PLAN_ROWS))
    command = facts.plan_command(dataset.root)
    return {"plan": plan, "plan_tables": tables_of(plan.runs), "plan_command": command}


def look(
    dataset: Dataset, options: ReportOptions, progress: Progress | None = None
) -> tuple[Survey, Chooser]:
    """Read the indexes: what they say, and which samples to show."""
    manifest = dataset.manifest
    numbers = shards_to_read(dataset, options.shards)
    found = Survey(len(numbers), is_whole=len(numbers) == len(manifest.shards))
    found.by_source = np.zeros((len(manifest.sources), 3), np.int64)
    chooser = Chooser(options.samples)
    firsts = np.concatenate([[0], np.cumsum(manifest.sizes)])
    image_tokens = images_of(manifest.recipe).get("image_tokens") or 1
    max_length = manifest.recipe.get("max_length")
    for i, number in enumerate(numbers):
        shard = dataset.open_shard(number)
        lengths = places_of(shard, image_tokens)
        first_source = dataset.builds[number].first_source
        found.add(shard, lengths, first_source, max_length)
        chooser.offer(shard, number, lengths, int(firsts[number]), first_source)
        shard.close()
        if progress is not None:
            progress(i + 1, len(numbers))
    return found, chooser


def chosen_cards(
    dataset: Dataset, chooser: Chooser, options: ReportOptions
) -> tuple[list[Card], int]:
    """Cards of the chosen samples, and how many had no room in the page."""
    marker = Marker(dataset) if options.text else None
    room = max(1, options.budget // max(1, options.samples)) // 2
    maker = Cards(dataset, marker, with_images=options.images, max_characters=room)
    firsts = np.concatenate([[0], np.cumsum(dataset.manifest.sizes)])
    cards, n_left_out, used = [], 0, 0
    for number, places in groupby(chooser.chosen(), key=lambda place: place[0]):
        shard = dataset.open_shard(number)
        for _, row in places:
            card = maker.card(shard, number, row, int(firsts[number]))
            if used + card.n_bytes > options.budget:
                n_left_out += 1
                continue
            used += card.n_bytes
            cards.append(card)
        shard.close()
    return cards, n_left_out


def charts_of(dataset: Dataset, found: Survey, kind: str) -> list[charts.Chart]:
    """The charts that the dataset has figures for."""
    max_length = dataset.manifest.recipe.get("max_length")
    has_pictures = bool(dataset.manifest.n_images)
    made = [charts.length_chart(found.lengths, kind, max_length, has_pictures=has_pictures)]
    if found.n_segments:
        made.append(charts.length_chart(found.segment_lengths, "segment", max_length))
    note = f"{found.n_unanswered:,} {kind}s have no supervised token." if found.n_unanswered else ""
    title = "Supervised share"
    made.append(charts.share_chart(title, note, "tokens with a label", found.supervised, kind))
    if found.filled is not None:
        note = f"{found.n_segments:,} segments, {found.n_split:,} go on in another pack."
        made.append(charts.share_chart("Fill of packs", note, "of max length", found.filled, kind))
    if dataset.manifest.n_images:
        made.append(charts.image_chart(found, kind))
    return made


def sources_of(dataset: Dataset, found: Survey) -> list[Source]:
    """The source files, those of most rows first."""
    entries = [
        Source(
            name=visible(entry.name),
            n_rows=entry.n_rows,
            n_kept=entry.n_kept,
            rejected=sorted((charts.words(r), n) for r, n in entry.rejected.items() if n),
            n_truncated=entry.n_truncated,
            n_parts=int(counts[0]),
            n_tokens=int(counts[1]),
            n_images=int(counts[2]),
        )
        for entry, counts in zip(dataset.manifest.sources, found.by_source, strict=True)
    ]
    return sorted(entries, key=lambda source: -source.n_rows)
