"""Packs over a whole input (`--pack-scope all`): a second pass, over parts of unpacked rows.

The parts lie in the work folder. From their indexes alone, about 100 bytes a row, it is decided
which samples share a pack; then sections of about one shard each are written, by several workers
and in any order. Borders of sections follow from the rows and options, so the bytes do too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.builder.gather import Gatherer, OldShards, Pictures, find_pictures
from shardkit.builder.job import killed
from shardkit.builder.plan import Plan, PlanShape
from shardkit.builder.receipt import Receipt, done_receipt, part_folder, save_receipt
from shardkit.builder.stretches import STRETCH, ShardFile, Stretches
from shardkit.format.builds import WHOLE
from shardkit.format.canonical import sha256_of
from shardkit.format.recipe import MULTIPLE, NO_PACKING, RowRules, pad_token_id_of
from shardkit.format.rolling import RollingShardWriter
from shardkit.processes import ForkPool, can_fork
from shardkit.ragged import offsets
from shardkit.tokens.layout import RULES, ImageSpans, Layout, Limits, Units
from shardkit.tokens.padding import lay_out, with_padding

FOLDER = "whole"
"""The folder of the sections, which are parts too, in the work folder."""
_ROW_BYTES = 1536
"""Bytes of the headers and padding of a row, about."""
_WORD_PAIR = 8
"""Bytes of a token with its label."""


def is_whole(plan: PlanShape) -> bool:
    """Whether the packs of a plan are laid out over all of its rows."""
    return bool(plan.identity["layout"].get("scope") == WHOLE)


def rows_of(plan: Plan) -> Plan:
    """The plan of the first pass: the same parts, whose rows are neither packed nor compressed."""
    recipe = {**plan.identity["recipe"], "packing": NO_PACKING}
    recipe.pop(MULTIPLE, None)
    options = msgspec.structs.replace(
        plan.options,
        packing=NO_PACKING,
        pack_scope="part",
        compression="none",
        pad_documents_to_multiple=1,
    )
    identity = {**plan.identity, "recipe": recipe}
    return replace(plan, options=options, identity=identity, begun_as=plan.key)


@dataclass(frozen=True, slots=True)
class Second:
    """The second pass: what it reads, and how it writes. Small, and readable by other processes."""

    recipe: dict[str, Any]
    compression: str
    shard_size: int
    folder: Path
    files: tuple[ShardFile, ...]
    """The shards of all parts, in the order of the rows."""
    key: str
    """What the receipts of its sections name."""

    @classmethod
    def of(
        cls, plan: PlanShape, compression: str, receipts: Sequence[Receipt], folder: Path
    ) -> Second:
        """The second pass of a plan whose parts are all built in `folder`."""
        names = tuple(scan.name for scan in plan.scans)
        files = tuple(
            ShardFile(part_folder(folder, receipt.part) / entry.name, entry, names)
            for receipt in receipts
            for entry in receipt.shards
        )
        key = sha256_of([plan.key, *(file.entry.sha256 for file in files)])
        size = plan.identity["layout"]["shard_size"]
        recipe = plan.identity["recipe"]
        return cls(recipe, compression, size, folder / FOLDER, files, key)


class SectionWriter:
    """Writes the sections of a second pass; the layout is found when it is first needed."""

    def __init__(self, job: Second) -> None:
        self.job = job
        images = job.recipe.get("images") or {}
        self._max_images = images.get("max_images")
        self._rules = RowRules.of(job.recipe)
        self._old = OldShards(job.files, job.folder / "plain", are_checked=True)
        self._starts = offsets([file.entry.n_samples for file in job.files])

    @cached_property
    def _fields(self) -> dict[str, NDArray[np.int64]]:
        """(n,) of all samples: tokens, places in the model, images, bytes."""
        names = ("n_tokens", "length", "n_images", "span")
        found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
        for file in self.job.files:
            with closing(file.open()) as shard:
                for name in names:
                    found[name].append(shard.index[name].astype(np.int64))
        empty = np.zeros(0, np.int64)
        return {name: np.concatenate([empty, *parts]) for name, parts in found.items()}

    @property
    def layout(self) -> Layout:
        """All packs, of samples numbered through the input."""
        return self._laid_out[0]

    @cached_property
    def _laid_out(self) -> tuple[Layout, NDArray[np.int64]]:
        """All packs, and the padding behind each stretch."""
        fields, images = self._fields, ImageSpans.none()
        if RULES[self.job.recipe["packing"]].cuts and fields["n_images"].any():
            held = self._held(np.arange(len(fields["length"])))
            images = self._pictures(held).spans
        units = Units(fields["n_tokens"], fields["length"], fields["n_images"], images)
        limits = Limits(self.job.recipe["max_length"], self._max_images)
        return lay_out(self.job.recipe["packing"], units, limits, self.job.recipe.get(MULTIPLE, 1))

    @cached_property
    def borders(self) -> NDArray[np.int64]:
        """The first pack of each section, and the number of packs: sections of about one shard.

        Packs that end after [3, 6, 9, 12] bytes, two sections: the share 6.0 ends in pack 1, so
        the borders are [0, 1, 4].
        """
        layout, fields = self.layout, self._fields
        n_packs = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
        pictures = np.where(
            fields["n_images"] > 0, fields["span"] - _WORD_PAIR * fields["n_tokens"], 0
        )
        weights = _WORD_PAIR * layout.lengths + pictures[layout.unit] * (layout.skip == 0)
        ends = np.cumsum(np.bincount(layout.pack, weights, n_packs) + _ROW_BYTES)
        if not n_packs:
            return np.zeros(1, np.int64)
        n_sections = int(-(-ends[-1] // self.job.shard_size))
        shares = ends[-1] * np.arange(1, n_sections) / n_sections
        return np.unique(np.concatenate([[0], np.searchsorted(ends, shares), [n_packs]]))

    @property
    def n_sections(self) -> int:
        """How many sections there are."""
        return len(self.borders) - 1

    def write(self, number: int) -> Receipt:
        """Make the shards of a section below the folder, then its receipt."""
        job = self.job
        place = part_folder(job.folder, number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        writer = RollingShardWriter(
            place, recipe=job.recipe, compression=job.compression, shard_size=job.shard_size
        )
        first, last = self._stretches_of(number)
        pad = pad_token_id_of(job.recipe)
        with writer:
            for samples in self._gatherer(number):
                n = 0 if samples.segments is None else len(samples.segments)
                pads = self._laid_out[1][first : min(first + n, last)]
                writer.write(with_padding(samples, pads, pad))
                first += n
            shards = writer.finish()
        receipt = Receipt(
            part=number,
            fingerprint=job.key,
            shards=shards,
            sources={},
            checks={},
            notes={},
            engine="",
            n_rows=0,
            n_samples=0,
            n_placed=writer.n_placed,
            files={},
        )
        save_receipt(receipt, job.folder)
        return receipt

    def _stretches_of(self, number: int) -> tuple[int, int]:
        """The first stretch of a section, and the first behind it."""
        first, last = np.searchsorted(self.layout.pack, self.borders[number : number + 2])
        return int(first), int(last)

    def _gatherer(self, number: int) -> Gatherer:
        first, last = self._stretches_of(number)
        whole = self.layout
        samples, unit = np.unique(whole.unit[first:last], return_inverse=True)
        held = self._held(samples)
        layout = Layout(
            unit.reshape(-1),
            whole.skip[first:last],
            whole.lengths[first:last],
            whole.pack[first:last] - self.borders[number],
        )
        return Gatherer(held, self._old, self._pictures(held), layout, self._rules)

    def _pictures(self, held: Stretches) -> Pictures:
        return find_pictures(held, self._old, self._rules)

    def _held(self, samples: NDArray[np.int64]) -> Stretches:
        """Where these samples, ascending, lie in the parts."""
        table = np.zeros(len(samples), STRETCH)
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        table["shard"] = shards
        table["row"] = samples - self._starts[shards]
        for number in np.unique(shards).tolist():
            mine = shards == number
            index = self._old[number].shard.index[table["row"][mine]]
            table["length"][mine] = index["n_tokens"]
            for name in ("n_images", "source", "record", "piece", "n_cut", "flags"):
                table[name][mine] = index[name]
        return Stretches(table, np.arange(len(samples) + 1))

    def prepare(self) -> None:
        """Lay all packs out, and let go of what only that needs."""
        _ = self.borders
        del self._fields

    def close(self) -> None:
        """Let go of the parts."""
        self._old.close()


@dataclass(frozen=True, slots=True)
class Sections:
    """What a second pass made."""

    job: Second
    receipts: list[Receipt]
    """The receipts of all sections, in order."""


OnDone = Callable[[int, int], None]
"""Called with (sections done, all sections)."""

_writer: SectionWriter | None = None
"""The writer, loaded in the process that forks; its workers have it from birth."""


def write_sections(job: Second, workers: int, on_done: OnDone | None = None) -> Sections:
    """Write all sections that are not done.

    With several workers they are forked from a process that has the layout. Raises BuildFailed.
    """
    job.folder.mkdir(exist_ok=True)
    if workers == 1 or not can_fork():
        with closing(SectionWriter(job)) as writer:
            numbers = range(writer.n_sections)
            return _completed(job, numbers, lambda left: map(writer.write, left), on_done)
    with ForkPool(_load, "shardkit packer") as pool:
        try:
            pool.begin(job, workers=workers)
            [n_sections] = pool.run(_count, [None])
            return _completed(job, range(n_sections), lambda left: pool.each(_write, left), on_done)
        except BrokenProcessPool as err:
            raise killed("packs of the whole input") from err


def _completed(
    job: Second,
    numbers: range,
    write: Callable[[list[int]], Iterable[Receipt]],
    on_done: OnDone | None,
) -> Sections:
    found = {number: done_receipt(job.key, job.folder, number) for number in numbers}
    receipts = {number: one for number, one in found.items() if one is not None}
    for receipt in write([number for number in numbers if number not in receipts]):
        receipts[receipt.part] = receipt
        if on_done:
            on_done(len(receipts), len(numbers))
    return Sections(job, [receipts[number] for number in numbers])


def _load(job: Second) -> None:
    global _writer
    _writer = SectionWriter(job)
    _writer.prepare()


def _loaded() -> SectionWriter:
    if _writer is None:
        raise RuntimeError("the process that forks holds no layout")
    return _writer


def _count(_: None) -> int:
    return _loaded().n_sections


def _write(number: int) -> Receipt:
    return _loaded().write(number)
