"""One part: rows become shards and a receipt. A part depends on no other part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.builder.ledger import Ledger
from shardkit.builder.pictures import ProcessorCheck, placed, sizes_of
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt, part_folder, save_receipt
from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.format.recipe import pad_token_id_of
from shardkit.format.rolling import RollingShardWriter
from shardkit.format.samples import SEGMENT_DTYPE, Samples, StoredImage, join_samples
from shardkit.images import ImageStore
from shardkit.sources import Found, duplicates_of, source_named
from shardkit.tokens import ChatTemplate, Encoder, pack

BATCH_ROWS = 2048
"""Rows that are read and encoded at once."""


@dataclass
class PartBuilder:
    """Builds parts of one plan in one process; the encoder is loaded once."""

    plan: Plan
    folder: Path
    """OUT/.building, or a folder in it."""
    on_rows: Callable[[int, int], None] | None = None
    """Called with (rows, tokens) done since the last call."""
    encoder: Encoder = field(init=False)
    check: ProcessorCheck | None = field(init=False)
    """Compares some rows with the whole processor; None without one."""

    def __post_init__(self) -> None:
        options = self.plan.options
        self.encoder = Encoder(
            self.plan.tokenizer,
            self.plan.template,
            max_length=options.max_length,
            special_tokens_in_text=options.special_tokens_in_text,
            image_tokens=options.image_tokens,
            image_placeholder=self.plan.image_token,
            engine=options.engine,
            pictures=self.plan.processor,
            rules=options.rules,
            task=options.task,
        )
        self.check = None
        if self.plan.processor is not None and isinstance(self.plan.template, ChatTemplate):
            self.check = ProcessorCheck(self.plan.processor, self.plan.template, options.rules)
        self.images = ImageStore(
            options.image_root,
            size=options.image_size,
            fit=options.image_fit,
            quality=options.image_quality,
            max_pixels=options.store_max_pixels,
        )

    def build(self, part: int) -> Receipt:
        """Make the shards of a part below `folder`, then its receipt.

        Where the fast tokenizer engine was found to differ on the way, the part is made again
        with the one that was fallen back to.
        """
        was_trusted = self.encoder.difference is None
        receipt = self._checked(part)
        if was_trusted and self.encoder.difference is not None:
            receipt = self._checked(part)
        save_receipt(receipt, self.folder)
        return receipt

    def _checked(self, part: int) -> Receipt:
        """A part of inputs that did not change meanwhile, whatever else went wrong with it."""
        try:
            receipt = self._build(part)
        except Exception:
            self.plan.check_unchanged()
            raise
        self.plan.check_unchanged(receipt.sources)
        return receipt

    def _build(self, part: int) -> Receipt:
        place = part_folder(self.folder, part)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        ledger = Ledger(self.plan)
        writer = RollingShardWriter(
            place,
            recipe=self.plan.identity["recipe"],
            compression=self.plan.options.compression,
            shard_size=self.plan.options.shard_size,
        )
        with writer:
            self._fill(part, writer, ledger)
            shards = writer.finish()
        files = ledger.write(place)
        difference = self.encoder.difference
        return Receipt(
            part=part,
            fingerprint=self.plan.key,
            shards=shards,
            files=files,
            sources=ledger.sources,
            checks=ledger.checks,
            notes=dict(ledger.notes),
            engine=self.encoder.engine_name,
            difference=difference.describe() if difference else None,
            n_rows=ledger.n_rows,
            n_samples=ledger.n_samples,
            n_placed=writer.n_placed,
        )

    def _fill(self, part: int, writer: RollingShardWriter, ledger: Ledger) -> None:
        options = self.plan.options
        first, last = self.plan.part_bounds(part)
        waiting: list[Samples] = []
        for begin in range(first, last, BATCH_ROWS):
            samples = self._encode(begin, min(begin + BATCH_ROWS, last), ledger)
            if self.plan.is_packed:
                waiting.append(samples)
            else:
                writer.write(samples)
            if self.on_rows:
                self.on_rows(min(begin + BATCH_ROWS, last) - begin, len(samples.ids))
        if waiting:
            writer.write(
                pack(
                    join_samples(waiting),
                    rule=options.packing,
                    max_length=options.max_length,
                    image_tokens=options.image_tokens,
                    max_images=options.max_images,
                    image_placeholder=self.plan.image_token,
                    multiple=options.pad_documents_to_multiple,
                    pad_token_id=pad_token_id_of(self.plan.identity["recipe"]),
                )
            )

    def _encode(self, first: int, last: int, ledger: Ledger) -> Samples:
        """The samples of some rows; every row that gives none is counted as rejected."""
        sources, rows = self.plan.rows(first, last)
        ledger.read(sources)
        images: dict[int, tuple[StoredImage, ...]] = {}
        found = self._read(sources, rows, ledger)
        kept, conversations = self._usable(found, sources, rows, images, ledger)
        sizes = sizes_of(images, kept) if self.plan.processor is not None else None
        encoded = self.encoder.encode(conversations, sizes)
        if self.check is not None and self.plan.options.special_tokens_in_text == "parse":
            pairs = zip(sources[kept].tolist(), rows[kept].tolist(), strict=True)
            wheres = [f"{self.plan.scans[source].name} row {row}" for source, row in pairs]
            self.check(conversations, images, kept, encoded, wheres)
        survivors = set(encoded.kept.tolist())
        for position, reject in encoded.rejects:
            source, row = int(sources[kept[position]]), int(rows[kept[position]])
            if reject.piece is not None:
                ledger.lose_piece(source, row, reject)
            if position not in survivors:
                ledger.reject(source, row, reject)
                survivors.add(position)  # of a split row, once
        places = np.array(kept, np.int64)[encoded.kept]
        chosen = conversations
        if encoded.rejects or len(encoded.kept) != len(conversations):
            chosen = [conversations[i] for i in encoded.kept.tolist()]
        samples = replace(
            encoded.samples,
            source=sources[places].astype(np.uint32),
            record=rows[places].astype(np.uint64),
            piece=encoded.piece if encoded.piece.any() else None,
        )
        if images:
            firsts, ends = encoded.first_image, encoded.first_image + encoded.n_images
            counts = zip(places.tolist(), firsts.tolist(), ends.tolist(), strict=True)
            left = tuple(images.get(i, ())[first:end] for i, first, end in counts)
            if encoded.pictures:
                left = tuple(map(placed, left, encoded.pictures))
            samples = replace(
                samples,
                images=left,
                row_ids=tuple((getattr(one, "id", None),) for one in chosen),
            )
        if self.plan.is_packed:
            samples = replace(samples, segments=_whole_segments(samples))
        elif samples.segments is not None:
            _name_rows(samples.segments, samples)
        ledger.keep(samples, chosen)
        for name in encoded.notes.__slots__:
            ledger.notes[name] += getattr(encoded.notes, name)
        return samples

    def _usable(
        self,
        found: list[Conversation | Exchange | Reject],
        sources: NDArray[np.int64],
        rows: NDArray[np.int64],
        images: dict[int, tuple[StoredImage, ...]],
        ledger: Ledger,
    ) -> tuple[list[int], list[Conversation | Exchange]]:
        """The rows that can be encoded, by position; their images go to `images`."""
        rejected: set[int] = set()
        for i in [i for i, kind in enumerate(map(type, found)) if kind is not Exchange]:
            one = found[i]
            if isinstance(one, Conversation) and one.images:
                one = self._load(one, i, images, ledger)
            if isinstance(one, Reject):
                ledger.reject(int(sources[i]), int(rows[i]), one)
                rejected.add(i)
        kept = [i for i in range(len(found)) if i not in rejected]
        return kept, [found[i] for i in kept]  # type: ignore[misc]

    def _read(
        self, sources: NDArray[np.int64], rows: NDArray[np.int64], ledger: Ledger
    ) -> list[Conversation | Exchange | Reject]:
        """A conversation or a reason for each row, in the order of the batch."""
        plan, kind = self.plan, source_named(self.plan.source_format)

        def read_source(source: int, rows: NDArray[np.int64]) -> list[Found]:
            scan, unread = plan.scans[source], ledger.unread_of(source)
            found = kind.read_rows(scan, rows, plan.read_options, unread)
            for position, (other, row) in duplicates_of(scan, rows).items():
                detail = f"the same as row {row} of {plan.scans[other].name}"
                found[position] = Reject(Reason.DUPLICATE, detail)
            return found

        chosen = np.unique(sources)
        if len(chosen) == 1:
            return read_source(int(chosen[0]), rows)
        found: dict[int, Conversation | Exchange | Reject] = {}
        for source in chosen.tolist():
            places = np.flatnonzero(sources == source)
            read = read_source(source, rows[places])
            found.update(zip(places.tolist(), read, strict=True))
        return [found[place] for place in range(len(rows))]

    def _load(
        self,
        conversation: Conversation,
        i: int,
        images: dict[int, tuple[StoredImage, ...]],
        ledger: Ledger,
    ) -> Conversation | Reject:
        """The conversation, its images loaded as `images[i]`, or what is wrong with one."""
        limit = self.plan.options.max_images
        if limit is not None and len(conversation.images) > limit:
            n = len(conversation.images)
            return Reject(Reason.TOO_MANY_IMAGES, f"{n} images, at most {limit} are allowed")
        loaded = []
        for reference in conversation.images:
            image = self.images.load(reference)
            if isinstance(image, Reject):
                return image
            if self.images.n_saved is not None and self.plan.options.store_max_pixels is not None:
                ledger.notes["pictures_made_smaller"] += 1
                ledger.notes["picture_bytes_saved"] += self.images.n_saved
            loaded.append(image)
        images[i] = tuple(loaded)
        return conversation


def _name_rows(segments: NDArray[np.void], samples: Samples) -> None:
    """Write down which source row each segment is of."""
    segments["source"] = samples.source[segments["sample"]]
    segments["record"] = samples.record[segments["sample"]]


def _whole_segments(samples: Samples) -> NDArray[np.void]:
    """The segments that rows brought along, or one for each row, with where they come from.

    What was cut from a row is told by its last segment: rows [0, 0, 1], is_last [F, T, T].
    """
    segments = samples.segments
    if segments is None:
        segments = np.zeros(len(samples), SEGMENT_DTYPE)
        segments["sample"] = np.arange(len(samples))
        segments["length"] = samples.lengths
        segments["n_images"] = [len(images) for images in samples.images] or 0
    _name_rows(segments, samples)
    is_last = np.append(np.diff(segments["sample"].astype(np.int64)) != 0, True)
    segments["n_cut"] = samples.n_cut[segments["sample"]] * is_last[: len(segments)]
    if samples.piece is not None:
        segments["piece"] = samples.piece[segments["sample"]]
    return segments
