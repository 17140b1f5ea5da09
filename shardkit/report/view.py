"""One sample as a person reads it: text with its loss mask, segments, images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from shardkit.dataset import Dataset
from shardkit.errors import UsageError
from shardkit.format.layout import FLAG_DESIRABLE
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import KTO, PREFERENCE, RowRules
from shardkit.format.samples import IGNORE_INDEX
from shardkit.format.shard import Shard
from shardkit.report.origins import places_of_row
from shardkit.report.stored_tokenizer import stored_tokenizer


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A piece of one source row: its text in pieces, each with or without loss."""

    source: str
    row: int
    first: int
    """Tokens of the row that come before the piece (not 0: it goes on from another pack)."""
    n_tokens: int
    pieces: list[tuple[str, bool]]
    id: str | None = None
    answer: str = ""
    """`chosen` or `rejected`, of a pair; `good` or `bad`, of a labelled answer."""


@dataclass(frozen=True, slots=True)
class ImageView:
    """One image of the sample."""

    name: str
    width: int
    height: int
    n_bytes: int
    extension: str
    tokens: int | None = None
    """Image tokens in the row, with a processor."""
    grid: tuple[int, ...] = ()
    """How the processor cuts the image up; () without one."""


@dataclass(frozen=True, slots=True)
class SampleView:
    """One sample or pack."""

    shard: str
    key: str
    n_tokens: int
    n_supervised: int
    n_cut: int
    segments: list[SegmentView]
    images: list[ImageView] = field(default_factory=list)


def find_sample(manifest: Manifest, wanted: str) -> tuple[int, int]:
    """(shard, row) of a position in the dataset, or of SHARD/KEY as batches name it.

    Raises UsageError when there is no such sample.
    """
    shard, slash, key = wanted.rpartition("/")
    if slash:
        names = [entry.name for entry in manifest.shards]
        stems = [name.split(".")[0] for name in names]
        for number, (name, stem) in enumerate(zip(names, stems, strict=True)):
            if shard in (name, stem) and key.isdecimal() and int(key) < int(manifest.sizes[number]):
                return number, int(key)
    elif wanted.isdecimal() and int(wanted) < manifest.n_samples:
        ends = np.cumsum(manifest.sizes)
        number = int(np.searchsorted(ends, int(wanted), side="right"))
        return number, int(wanted) - int(ends[number] - manifest.sizes[number])
    raise UsageError(
        "there is no such sample",
        expected=f"0 to {manifest.n_samples - 1}, -1 (the last), a range as 3:6, SHARD/KEY as "
        "shard-00000/00000012, or FILE:ROW",
        found=wanted,
        fix="Give --sample one of these.",
    )


def find_samples(dataset: Dataset, wanted: str) -> list[tuple[int, int]]:
    """(shard, row) of every sample that is meant.

    A position (from the end when it is negative), a range as 3:6, :10 or -5: (its end is not in
    it), SHARD/KEY, or FILE:ROW for all pieces of a source row. Raises UsageError when there is no
    such sample.
    """
    manifest = dataset.manifest
    name, colon, row = wanted.rpartition(":")
    if colon and row.isdecimal() and name in manifest.source_names:
        places = places_of_row(dataset, manifest.source_names.index(name), int(row))
        if not places:
            raise UsageError(
                f"row {row} of {name} is in no shard",
                fix="Look for it in rejects.jsonl: it may have been rejected.",
            )
        return list(dict.fromkeys((place[0], place[1]) for place in places))
    found = re.fullmatch(r"(-?\d*):(-?\d*)", wanted)
    if found and wanted != ":":
        begin, end = (int(text) if text not in ("", "-") else None for text in found.groups())
        positions = range(manifest.n_samples)[begin:end]
        if positions:
            return [find_sample(manifest, str(position)) for position in positions]
    if re.fullmatch(r"-\d+", wanted) and int(wanted) >= -manifest.n_samples:
        return [find_sample(manifest, str(manifest.n_samples + int(wanted)))]
    return [find_sample(manifest, wanted)]


def view_sample(dataset: Dataset, number: int, row: int) -> SampleView:
    """A sample decoded with the tokenizer that lies in the dataset.

    Raises CorruptShard or MissingShard when it cannot be read, TokenizerError for the tokenizer.
    """
    shard = dataset.open_shard(number)
    names = dataset.builds[number].source_names
    decoder = Decoder(dataset)
    tokens = shard.tokens(row)
    meta, index = shard.meta(row), shard.index[row]
    ids = list(meta.ids) if meta else []
    answers = answers_of(shard, row)
    if shard.segments is None:
        bounds = [(0, int(index["n_tokens"]), int(index["source"]), int(index["record"]), 0)]
    else:
        fields = ("start", "length", "source", "record", "first")
        bounds = [tuple(int(s[name]) for name in fields) for s in shard.segments_of(row)]  # type: ignore[misc]
    segments = [
        SegmentView(
            source=names[source],
            row=record,
            first=first,
            n_tokens=length,
            pieces=decoder.pieces(tokens[:, start : start + length]),
            id=ids[i] if i < len(ids) else None,
            answer=answers[i] if answers else "",
        )
        for i, (start, length, source, record, first) in enumerate(bounds)
    ]
    members = shard.members(row)[1 : 1 + len(meta.images)] if meta else []
    images = [
        ImageView(
            image.name,
            image.width,
            image.height,
            member.size,
            member.name.split(".")[-1],
            image.tokens,
            image.grid,
        )
        for image, member in zip(meta.images if meta else (), members, strict=True)
    ]
    view = SampleView(
        shard=shard.name,
        key=shard.key(row),
        n_tokens=int(index["n_tokens"]),
        n_supervised=int(index["n_supervised"]),
        n_cut=int(index["n_cut"]),
        segments=segments,
        images=images,
    )
    shard.close()
    return view


def answers_of(shard: Shard, row: int) -> tuple[str, ...]:
    """What the answers of a preference row are called, one for each of its segments, or ()."""
    task = RowRules.of(shard.recipe).task
    if task == PREFERENCE:
        return ("chosen", "rejected")
    is_good = bool(int(shard.index["flags"][row]) & FLAG_DESIRABLE)
    return ("good" if is_good else "bad",) if task == KTO else ()


def save_images(dataset: Dataset, number: int, row: int, folder: Path) -> list[Path]:
    """Write a sample's images, as they are stored, into a folder that is made; their paths.

    Raises CorruptShard or MissingShard when the sample cannot be read, OSError for the folder.
    """
    shard = dataset.open_shard(number)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    images = shard.images(row)
    members = shard.members(row)[1 : 1 + len(images)]
    for member, data in zip(members, images, strict=True):
        path = folder / f"{shard.name.split('.')[0]}-{member.name}"
        path.write_bytes(data)
        paths.append(path)
    shard.close()
    return paths


class Decoder:
    """Ids to text, offline; image placeholders as <image>, repeated image tokens once."""

    def __init__(self, dataset: Dataset) -> None:
        self._tokenizer = stored_tokenizer(dataset)
        images = dataset.manifest.recipe.get("images") or {}
        self._image_token = images.get("image_token")
        self._is_expanded = images.get("processor") is not None

    def pieces(
        self, tokens: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    ) -> list[tuple[str, bool]]:
        """Runs of tokens with, and without, loss as text."""
        has_loss = tokens[1] != IGNORE_INDEX
        cuts = np.flatnonzero(np.diff(has_loss)) + 1
        runs = np.split(np.arange(tokens.shape[1]), cuts)
        return [
            (self.text(tokens[0][run].tolist()), bool(has_loss[run[0]])) for run in runs if len(run)
        ]

    def text(self, ids: list[int]) -> str:
        """The text of ids; plain numbers when the dataset has no tokenizer."""
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        text = ""
        for is_image, run in groupby(ids, lambda token: token == self._image_token):
            part = list(run)
            text += self._images(len(part)) if is_image else self._words(part)
        return text

    def _words(self, ids: list[int]) -> str:
        return (
            str(self._tokenizer.decode(ids, skip_special_tokens=False)) if self._tokenizer else ""
        )

    def _images(self, n: int) -> str:
        """`<|image_pad|> x 308`, where the tokens of pictures are in the row."""
        if not self._is_expanded or self._image_token is None:
            return "<image>" * n
        return f"{self._words([self._image_token])} x {n}"
