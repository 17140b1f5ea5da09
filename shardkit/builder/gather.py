"""Samples of finished datasets, laid out anew: their tokens and pictures from the old shards."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.builder.stretches import ShardFile, Stretches
from shardkit.format.atomic import appear
from shardkit.format.layout import TOKENS_START
from shardkit.format.recipe import RowRules
from shardkit.format.samples import SEGMENT_DTYPE, Samples, StoredImage
from shardkit.format.shard import Shard
from shardkit.ragged import offsets, spread
from shardkit.tokens.layout import ImageSpans, Layout

CHUNK_BYTES = 32 << 20
"""Samples are gathered in groups of about this many bytes."""
MAX_OPENED = 256
"""Shards that are held open."""
_WORD = 4
"""Bytes of a token."""


class _Opened(NamedTuple):
    """A shard whose samples were all checked."""

    shard: Shard
    words: memoryview
    """The whole tar as int32."""
    starts: list[int]
    """The first token of each row, in words."""
    lengths: list[int]
    """Tokens of each row."""


@dataclass
class OldShards:
    """The shards that are read, opened when needed; the samples of each are checked then.

    A compressed one is written out below `folder` first, since its samples are not read in order.
    """

    files: Sequence[ShardFile]
    folder: Path
    are_checked: bool = False
    """Whether all samples were checked a moment ago: then their hashes are not compared again."""
    _opened: OrderedDict[int, _Opened] = field(default_factory=OrderedDict)

    def __getitem__(self, number: int) -> _Opened:
        found = self._opened.get(number)
        if found is None:
            found = self._open(number)
            self._opened[number] = found
            if len(self._opened) > MAX_OPENED:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(number)
        return found

    def _open(self, number: int) -> _Opened:
        shard = self.files[number].open()
        if not self.are_checked:
            shard.check(np.arange(shard.n_samples))
        if shard.is_compressed:
            path = self.folder / f"plain-{number}.tar"
            if not path.is_file():
                with appear(path) as file:
                    for piece in shard.pieces():
                        file.write(piece)
            shard.close()
            shard = Shard.open(path, source_names=self.files[number].source_names)
            shard.is_checked[:] = True
        data = shard.buffer.data
        words = data[: len(data) // _WORD * _WORD].cast("i")
        starts = (shard.index["offset"].astype(np.int64) + TOKENS_START) // _WORD
        return _Opened(shard, words, starts.tolist(), shard.index["n_tokens"].tolist())

    def close(self) -> None:
        """Let go of all shards, and remove what was written out."""
        self._opened.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images of all samples in order."""

    spans: ImageSpans
    """Where the images stand; tokens are counted through all samples."""
    shard: NDArray[np.int64]
    """(m,) the number of the old shard that each image is in."""
    row: NDArray[np.int64]
    """(m,) the row of that shard."""
    number: NDArray[np.int64]
    """(m,) which image of that row it is, from 0."""


def find_pictures(held: Stretches, old: OldShards, rules: RowRules) -> Pictures:
    """Where the images of the samples stand; reads the rows that have some."""
    begins = offsets(held.table["length"])[:-1]
    parts: list[tuple[int, ...]] = []
    for i in np.flatnonzero(held.table["n_images"]).tolist():
        one = held.table[i]
        shard, row = int(one["shard"]), int(one["row"])
        first, n = int(one["start"]), int(one["length"])
        for number, (at, length) in enumerate(_spans(old[shard], row, rules)):
            if first <= at < first + n:
                parts.append((int(begins[i]) + at - first, length, shard, row, number))
    places, lengths, shards, rows, numbers = np.array(parts, np.int64).reshape(-1, 5).T
    in_model = lengths if rules.image_token is None else lengths * rules.image_tokens
    return Pictures(ImageSpans(places, lengths, in_model), shards, rows, numbers)


def _spans(opened: _Opened, row: int, rules: RowRules) -> list[tuple[int, int]]:
    """(first token, tokens) of each image of an old row."""
    if rules.image_token is None:
        meta = opened.shard.meta(row)
        return [image.spans[0] for image in meta.images if image.spans] if meta else []
    ids = opened.shard.tokens(row)[0]
    return [(at, 1) for at in np.flatnonzero(ids == rules.image_token).tolist()]


@dataclass(frozen=True)
class Gatherer:
    """Makes the rows of a layout."""

    held: Stretches
    old: OldShards
    pictures: Pictures
    layout: Layout
    rules: RowRules
    """The rules of the new rows."""

    def __iter__(self) -> Iterator[Samples]:
        """All rows in order, in groups of about CHUNK_BYTES.

        Stretches of the packs [0, 0, 1] that weigh [3, 4, 5]: rows begin at the stretches [0, 2],
        and `reduceat` gives [7, 5] bytes of rows.
        """
        layout = self.layout
        n_rows = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
        bounds = np.searchsorted(layout.pack, np.arange(n_rows + 1))
        weights = self._weights()
        ends = offsets(np.add.reduceat(weights, bounds[:-1])) if n_rows else np.zeros(1, np.int64)
        first = 0
        while first < n_rows:
            last = int(np.searchsorted(ends, ends[first] + CHUNK_BYTES, side="right")) - 1
            last = max(first + 1, min(last, n_rows))
            yield self._rows(slice(int(bounds[first]), int(bounds[last])), first, last)
            first = last

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """(m + 1,) where each stretch begins among all tokens, found once: groups are many."""
        return offsets(self.held.table["length"])

    def _weights(self) -> NDArray[np.int64]:
        """(m,) about how many bytes each stretch of the layout is."""
        own = self.held.table[self.held.heads[self.layout.unit]]
        pictures = np.where(own["n_images"] > 0, 1 << 20, 0)
        return 8 * self.layout.lengths + pictures

    def _rows(self, part: slice, first: int, last: int) -> Samples:
        held, layout = self.held, self.layout
        unit, length = layout.unit[part], layout.lengths[part]
        start = self._begins[held.heads[unit]] + layout.skip[part]
        pack = layout.pack[part] - first
        lengths = np.bincount(pack, length, last - first).astype(np.int64)
        starts = offsets(lengths)
        heads = np.searchsorted(pack, np.arange(last - first))
        own = held.table[held.heads[unit]]
        ids, labels = self._tokens(start, length)
        segments = self._segments(own, unit, pack, start, length, starts)
        images, row_ids = self._images(segments, start, own)
        is_whole = not self.rules.is_packed
        return Samples(
            ids=ids,
            labels=labels,
            starts=starts,
            source=segments["source"][heads],
            record=segments["record"][heads],
            n_cut=np.bincount(pack, segments["n_cut"], last - first).astype(np.uint32),
            images=images,
            row_ids=row_ids,
            segments=None if is_whole else segments,
            piece=segments["piece"][heads],
            flags=own["flags"][heads] if is_whole else None,
        )

    def _tokens(
        self, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(sum(length),) ids and labels of runs of the samples' tokens, each int32.

        Stretches that begin at [0, 4, 9] and a run of 6 tokens from 2: stretches 0 and 1, of which
        tokens 2:4 and 4:8, so it skips [2, 0] of them.
        """
        begins = self._begins
        a = np.searchsorted(begins, start, side="right") - 1
        b = np.searchsorted(begins, start + length - 1, side="right") - 1
        counts = b - a + 1
        which = spread(a, counts)
        begin = np.maximum(np.repeat(start, counts), begins[which])
        end = np.minimum(np.repeat(start + length, counts), begins[which + 1])
        table = self.held.table[which]
        skip = begin - begins[which] + table["start"]
        ids, labels = [], []
        fields = (table["shard"], table["row"], skip, end - begin)
        for shard, row, at, n in zip(*(one.tolist() for one in fields), strict=True):
            opened = self.old[shard]
            place = opened.starts[row] + at
            ids.append(opened.words[place : place + n])
            place += opened.lengths[row]
            labels.append(opened.words[place : place + n])
        return np.frombuffer(b"".join(ids), np.int32), np.frombuffer(b"".join(labels), np.int32)

    def _segments(
        self,
        own: NDArray[np.void],
        unit: NDArray[np.int64],
        pack: NDArray[np.int64],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        starts: NDArray[np.int64],
    ) -> NDArray[np.void]:
        held = self.held
        segments = np.zeros(len(unit), SEGMENT_DTYPE)
        segments["sample"] = pack
        segments["start"] = offsets(length)[:-1] - starts[pack]
        segments["length"] = length
        for name in ("source", "record", "piece"):
            segments[name] = own[name]
        begins = self._begins
        segments["first"] = start - begins[held.heads[unit]]
        is_end = start + length == begins[held.heads[unit + 1]]
        segments["n_cut"] = held.table["n_cut"][held.heads[unit + 1] - 1] * is_end
        at = self.pictures.spans.first
        segments["n_images"] = np.searchsorted(at, start + length) - np.searchsorted(at, start)
        return segments

    def _images(
        self, segments: NDArray[np.void], start: NDArray[np.int64], own: NDArray[np.void]
    ) -> tuple[tuple[tuple[StoredImage, ...], ...], tuple[tuple[str | None, ...], ...]]:
        """Per row its images, and the records' own ids of its documents."""
        if not segments["n_images"].any():
            return (), ()
        n_rows = int(segments["sample"][-1]) + 1
        images: list[list[StoredImage]] = [[] for _ in range(n_rows)]
        row_ids: list[list[str | None]] = [[] for _ in range(n_rows)]
        pictures, firsts = self.pictures, np.searchsorted(self.pictures.spans.first, start)
        for i, row in enumerate(segments["sample"].tolist()):
            row_ids[row].append(self._id_of(own[i]))
            for k in range(int(firsts[i]), int(firsts[i]) + int(segments["n_images"][i])):
                at = int(pictures.spans.first[k] - start[i] + segments["start"][i])
                images[row].append(self._image(k, at))
        return tuple(map(tuple, images)), tuple(map(tuple, row_ids))

    def _id_of(self, one: np.void) -> str | None:
        """The record's own id; only rows with images keep it."""
        meta = self.old[int(one["shard"])].shard.meta(int(one["row"]))
        segment = int(one["segment"])
        return meta.ids[segment] if meta and segment < len(meta.ids) else None

    def _image(self, k: int, at: int) -> StoredImage:
        pictures = self.pictures
        shard = self.old[int(pictures.shard[k])].shard
        row, number = int(pictures.row[k]), int(pictures.number[k])
        meta = shard.meta(row)
        about = meta.images[number] if meta else None
        member = shard.members(row)[1 + number]
        if about is None:
            raise AssertionError("a picture without a description")
        spans = ((at, int(pictures.spans.lengths[k])),) if about.spans else ()
        return StoredImage(
            about.name,
            bytes(shard.images(row)[number]),
            member.name.rsplit(".", 1)[1],
            about.width,
            about.height,
            about.tokens,
            about.grid,
            spans,
        )
