"""A sample as a card of a page: runs of text by document, thumbnails, and what to filter by."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardkit.dataset import Dataset
from shardkit.format.shard import Shard
from shardkit.images.decode import BadImage, decode_rgb
from shardkit.report.page.marks import Marker, Run, visible
from shardkit.report.page.survey import images_of, places_of
from shardkit.report.view import answers_of

THUMBNAIL = 128
"""Pixels of a thumbnail's longer side, at most."""
MAX_THUMBNAILS = 12
"""Thumbnails of one sample; its other pictures are named."""
QUALITY = 65


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a sample."""

    name: str
    width: int
    height: int
    """Pixels of the stored picture."""
    n_bytes: int
    tokens: str
    """How many tokens the picture is in the model, with its grid where that is known, in words."""
    source: str | None
    """A data: URL of the thumbnail; None when it is left out."""
    shown: tuple[int, int] = (0, 0)
    """Width and height of the thumbnail."""
    note: str = ""
    """Why there is no thumbnail."""


@dataclass(frozen=True, slots=True)
class Document:
    """A sample, or one of the segments of a pack."""

    source: str
    row: int
    id: str
    start: int
    n_tokens: int
    first: int
    """Tokens of the record that come before the document, in another pack."""
    runs: list[Run]
    n_hidden: int
    """Tokens at the document's end that the page leaves out."""
    answer: str = ""
    """`chosen` or `rejected`, of a pair; `good` or `bad`, of a labelled answer."""


@dataclass(frozen=True, slots=True)
class Card:
    """One sample or pack as a page shows it."""

    anchor: str
    """SHARD/KEY, as loaders name samples."""
    position: int
    """The sample's place in the dataset, from 0."""
    n_tokens: int
    length: int
    """Places in the model, pictures expanded."""
    n_supervised: int
    n_cut: int
    documents: list[Document]
    pictures: list[Picture] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Bytes that the card adds to a page, about."""
        runs = [run for document in self.documents for run in document.runs]
        texts = sum(len(run.text.encode(errors="replace")) + 40 for run in runs)
        return 1500 + texts + sum(300 + len(p.source or "") for p in self.pictures)


@dataclass(frozen=True)
class Cards:
    """Makes cards of the samples of a dataset."""

    dataset: Dataset
    marker: Marker | None
    """Makes texts of tokens; None: cards are without text."""
    with_images: bool = True
    max_characters: int = 40_000
    """Characters of text in one card, at most."""
    thumbnail: int = THUMBNAIL

    def card(self, shard: Shard, number: int, row: int, first_row: int) -> Card:
        """The card of a sample; `first_row`: the position of the shard's first sample.

        Raises CorruptShard when the bytes are not what the index says.
        """
        index, meta = shard.index[row], shard.meta(row)
        build = self.dataset.builds[number]
        documents = self._documents(shard, row, build.source_names, list(meta.ids) if meta else [])
        recipe = self.dataset.manifest.recipe
        length = int(places_of(shard, images_of(recipe).get("image_tokens") or 1)[row])
        return Card(
            anchor=f"{shard.name.split('.')[0]}/{shard.key(row)}",
            position=first_row + row,
            n_tokens=int(index["n_tokens"]),
            length=length,
            n_supervised=int(index["n_supervised"]),
            n_cut=int(index["n_cut"]),
            documents=documents,
            pictures=self._pictures(shard, row, meta, images_of(recipe)) if meta else [],
            sources=list(dict.fromkeys(document.source for document in documents)),
        )

    def _documents(
        self, shard: Shard, row: int, names: Sequence[str], ids: Sequence[str | None]
    ) -> list[Document]:
        tokens, index = shard.tokens(row), shard.index[row]
        bounds = [(0, int(index["n_tokens"]), int(index["source"]), int(index["record"]), 0)]
        if shard.segments is not None:
            fields = ("start", "length", "source", "record", "first")
            bounds = [tuple(int(s[name]) for name in fields) for s in shard.segments_of(row)]  # type: ignore[misc]
        room, documents = self.max_characters, []
        answers = answers_of(shard, row)
        for i, (start, length, source, record, first) in enumerate(bounds):
            part = tokens[:2, start : start + length]
            runs = self.marker.runs(part[0], part[1]) if self.marker else []
            shown, room = _within(runs, room)
            document = Document(
                source=visible(names[source]),
                row=record,
                id=visible(ids[i] or "") if i < len(ids) else "",
                start=start,
                n_tokens=length,
                first=first,
                runs=shown,
                n_hidden=length - sum(run.n_tokens for run in shown) if self.marker else 0,
                answer=answers[i] if answers else "",
            )
            documents.append(document)
        return documents

    def _pictures(
        self, shard: Shard, row: int, meta: Any, settings: dict[str, Any]
    ) -> list[Picture]:
        found = []
        for i, (image, data) in enumerate(zip(meta.images, shard.images(row), strict=False)):
            source, shown, note = None, (0, 0), "not shown"
            if self.with_images and i < MAX_THUMBNAILS:
                source, shown, note = thumbnail(data, self.thumbnail)
            picture = Picture(
                name=visible(image.name),
                width=image.width,
                height=image.height,
                n_bytes=len(data),
                tokens=_tokens_of(image, settings),
                source=source,
                shown=shown,
                note=note,
            )
            found.append(picture)
        return found


def thumbnail(data: bytes | memoryview, side: int) -> tuple[str | None, tuple[int, int], str]:
    """A picture as a small JPEG in a data: URL, and its size; or None, and why there is none."""
    try:
        small = decode_rgb(data)
    except BadImage as err:
        return None, (0, 0), visible(err.detail)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    text = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{text}", small.size, ""


def _tokens_of(image: Any, settings: dict[str, Any]) -> str:
    """Tokens of a picture in words, with the grid where the dataset has it."""
    n = getattr(image, "tokens", None) or settings.get("image_tokens")
    grid = getattr(image, "grid", None)
    text = f"{n:,} token{'' if n == 1 else 's'}" if n else ""
    return f"{text}, grid {' × '.join(map(str, grid))}" if grid else text


def _within(runs: list[Run], room: int) -> tuple[list[Run], int]:
    """The first runs whose text has room, and the room that is left."""
    shown: list[Run] = []
    for run in runs:
        if len(run.text) > room:
            return shown, 0
        shown.append(run)
        room -= len(run.text)
    return shown, room
