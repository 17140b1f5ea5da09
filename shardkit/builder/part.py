"""One part: rows become shards and a receipt. A part depends on no other part."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.builder.cutter import ShardCutter
from shardkit.builder.plan import Plan
from shardkit.conversation import Conversation, Exchange, Reason, Reject
from shardkit.errors import BadInput
from shardkit.format.atomic import appear
from shardkit.format.manifest import ShardEntry
from shardkit.format.samples import SEGMENT_DTYPE, Samples, StoredImage, join_samples
from shardkit.images import ImageStore
from shardkit.sources import SOURCES, ReadOptions, read_some
from shardkit.tokens import Encoder, pack

BATCH_ROWS = 2048
N_EXAMPLES = 5


class SourceCount(msgspec.Struct):
    """What became of the rows of one source, in one part."""

    n_rows: int = 0
    n_kept: int = 0
    rejected: dict[str, int] = {}
    n_truncated: int = 0
    n_cut_tokens: int = 0


class Check(msgspec.Struct):
    """Rows worth a look: how many, and the first ones as (source, row)."""

    n: int = 0
    examples: list[tuple[int, int]] = []


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a part made. It is written last, so it vouches for the part's files."""

    part: int
    fingerprint: str
    shards: list[ShardEntry]
    sources: dict[int, SourceCount]
    checks: dict[str, Check]
    notes: dict[str, int]
    engine: str
    n_rows: int
    n_samples: int
    """Rows kept."""
    n_placed: int
    """Distinct samples found in the shards: must equal n_samples."""


@dataclass
class PartBuilder:
    """Builds parts of one plan in one process; the encoder is loaded once."""

    plan: Plan
    folder: Path
    """OUT/.building"""
    on_rows: Callable[[int, int], None] | None = None
    """Called with (rows, tokens) done since the last call."""
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        options = self.plan.options
        self.encoder = Encoder(
            self.plan.tokenizer,
            self.plan.template,
            max_length=options.max_length,
            special_tokens_in_text=options.special_tokens_in_text,
            image_tokens=options.image_tokens,
            image_placeholder=options.image_token,
            engine=options.engine,
        )
        self.images = ImageStore(
            options.image_root,
            size=options.image_size,
            fit=options.image_fit,
            quality=options.image_quality,
        )

    def build(self, part: int) -> Receipt:
        """Make the shards of a part below `folder`, then its receipt.

        Where the fast tokenizer engine was found to differ on the way, the part is made again
        with the one that was fallen back to.
        """
        was_trusted = self.encoder.stats.difference is None
        receipt = self._build(part)
        if was_trusted and self.encoder.stats.difference is not None:
            receipt = self._build(part)
        with appear(receipt_path(self.folder, part)) as file:
            file.write(msgspec.json.encode(receipt))
        return receipt

    def _build(self, part: int) -> Receipt:
        place = part_folder(self.folder, part)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        tally = _Tally(self.plan)
        cutter = ShardCutter(
            place,
            identity=self.plan.identity,
            is_packed=self.plan.is_packed,
            compression=self.plan.options.compression,
            shard_size=self.plan.options.shard_size,
        )
        with cutter:
            self._fill(part, cutter, tally)
            shards = cutter.finish()
        tally.write(place)
        return Receipt(
            part=part,
            fingerprint=self.plan.fingerprint,
            shards=shards,
            sources=tally.sources,
            checks=tally.checks,
            notes=dict(tally.notes),
            engine=self.encoder.engine_name,
            n_rows=tally.n_rows,
            n_samples=tally.n_samples,
            n_placed=cutter.n_placed,
        )

    def _fill(self, part: int, cutter: ShardCutter, tally: _Tally) -> None:
        options = self.plan.options
        first, last = self.plan.part_bounds(part)
        waiting: list[Samples] = []
        for begin in range(first, last, BATCH_ROWS):
            samples = self._encode(begin, min(begin + BATCH_ROWS, last), tally)
            if self.plan.is_packed:
                waiting.append(samples)
            else:
                cutter.write(samples)
            if self.on_rows:
                self.on_rows(min(begin + BATCH_ROWS, last) - begin, len(samples.ids))
        if waiting:
            cutter.write(
                pack(
                    join_samples(waiting),
                    rule=options.packing,
                    max_length=options.max_length,
                    image_tokens=options.image_tokens,
                    max_images=options.max_images,
                    image_placeholder=options.image_token,
                )
            )

    def _encode(self, first: int, last: int, tally: _Tally) -> Samples:
        """The samples of some rows; every row that gives none is counted as rejected."""
        sources, rows = self.plan.rows(first, last)
        tally.read(sources)
        kept: list[int] = []
        conversations: list[Conversation | Exchange] = []
        images: dict[int, tuple[StoredImage, ...]] = {}
        for i, found in enumerate(self._read(sources, rows)):
            one = found
            if isinstance(one, Conversation) and one.images:
                one = self._load(one, i, images)
            if isinstance(one, Reject):
                tally.reject(int(sources[i]), int(rows[i]), one)
            else:
                kept.append(i)
                conversations.append(one)
        encoded = self.encoder.encode(conversations)
        for position, reject in encoded.rejects:
            tally.reject(int(sources[kept[position]]), int(rows[kept[position]]), reject)
        places = np.array(kept, np.int64)[encoded.kept]
        chosen = [conversations[i] for i in encoded.kept.tolist()]
        samples = replace(
            encoded.samples,
            source=sources[places].astype(np.uint32),
            record=rows[places].astype(np.uint64),
        )
        if images:
            counts = zip(places.tolist(), encoded.n_images.tolist(), strict=True)
            samples = replace(
                samples,
                images=tuple(images.get(i, ())[:n] for i, n in counts),
                row_ids=tuple((getattr(one, "id", None),) for one in chosen),
            )
        if self.plan.is_packed:
            samples = replace(samples, segments=_whole_segments(samples))
        tally.keep(samples, chosen)
        for name in encoded.notes.__slots__:
            tally.notes[name] += getattr(encoded.notes, name)
        return samples

    def _read(
        self, sources: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> list[Conversation | Exchange | Reject]:
        """A conversation or a reason for each row, in the order of the batch."""
        read_all = SOURCES[self.plan.source_format].read_all
        options = ReadOptions(system=self.plan.options.system)
        chosen = np.unique(sources)
        if len(chosen) == 1:
            return read_all(read_some(self.plan.scans[chosen[0]], rows), options)
        found: dict[int, Conversation | Exchange | Reject] = {}
        for source in chosen.tolist():
            places = np.flatnonzero(sources == source)
            records = read_some(self.plan.scans[source], rows[places])
            found.update(zip(places.tolist(), read_all(records, options), strict=True))
        return [found[place] for place in range(len(rows))]

    def _load(
        self, conversation: Conversation, i: int, images: dict[int, tuple[StoredImage, ...]]
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
            loaded.append(image)
        images[i] = tuple(loaded)
        return conversation


def _whole_segments(samples: Samples) -> NDArray[np.void]:
    """The segments that rows brought along, or one for each row, with where they come from."""
    segments = samples.segments
    if segments is None:
        segments = np.zeros(len(samples), SEGMENT_DTYPE)
        segments["sample"] = np.arange(len(samples))
        segments["length"] = samples.lengths
        segments["n_images"] = [len(images) for images in samples.images] or 0
    segments["source"] = samples.source[segments["sample"]]
    segments["record"] = samples.record[segments["sample"]]
    return segments


class _Tally:
    """Counts of one part, and its rejects."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rejects: list[bytes] = []
        self._hashes: list[NDArray[np.void]] = []
        self.sources: dict[int, SourceCount] = {}
        self.checks: dict[str, Check] = {}
        self.notes: Counter[str] = Counter()
        self.n_rows = 0
        self.n_samples = 0

    def read(self, sources: NDArray[np.int64]) -> None:
        for source, n in zip(*np.unique(sources, return_counts=True), strict=True):
            self._source(int(source)).n_rows += int(n)
        self.n_rows += len(sources)

    def reject(self, source: int, row: int, reject: Reject) -> None:
        name = self._plan.scans[source].name
        if self._plan.options.on_error == "fail":
            raise BadInput(
                f"rejected: {reject.reason}: {reject.detail}",
                where=f"{name}, row {row}",
                fix="Mend the row, or use --on-error reject.",
            )
        count = self._source(source)
        count.rejected[reject.reason] = count.rejected.get(reject.reason, 0) + 1
        line = {"source": name, "row": row, "reason": reject.reason, "detail": reject.detail}
        self._rejects.append(msgspec.json.encode(line))

    def keep(self, samples: Samples, conversations: list[Conversation | Exchange]) -> None:
        self.n_samples += len(samples)
        cut = samples.n_cut > 0
        for source in np.unique(samples.source).tolist():
            mine = samples.source == source
            count = self._source(source)
            count.n_kept += int(np.count_nonzero(mine))
            count.n_truncated += int(np.count_nonzero(mine & cut))
            count.n_cut_tokens += int(samples.n_cut[mine].sum(dtype=np.int64))
        empty = [is_empty_answer(conversation) for conversation in conversations]
        self._check("truncated", samples, cut)
        self._check("empty_answer", samples, np.array(empty, np.bool_))
        self._hashes.append(row_hashes(samples))

    def write(self, folder: Path) -> None:
        """The rejects and the row hashes, beside the shards."""
        with appear(folder / "rejects.jsonl") as file:
            file.write(b"".join(line + b"\n" for line in self._rejects))
        hashes = np.concatenate([np.zeros(0, HASH_DTYPE), *self._hashes])
        with appear(folder / "hashes.npy") as file:
            np.save(file, hashes, allow_pickle=False)

    def _check(self, name: str, samples: Samples, which: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(which)
        if len(rows):
            check = self.checks.setdefault(name, Check())
            check.n += len(rows)
            for i in rows[: N_EXAMPLES - len(check.examples)].tolist():
                check.examples.append((int(samples.source[i]), int(samples.record[i])))

    def _source(self, source: int) -> SourceCount:
        return self.sources.setdefault(source, SourceCount())


HASH_DTYPE = np.dtype([("hash", "<u8"), ("source", "<u4"), ("record", "<u8")])


def row_hashes(samples: Samples) -> NDArray[np.void]:
    """One HASH_DTYPE row per sample; equal token rows with equal images have equal hashes."""
    out = np.zeros(len(samples), HASH_DTYPE)
    out["source"], out["record"] = samples.source, samples.record
    data = samples.ids.data.cast("B")
    bounds = (samples.starts * 4).tolist()
    digest = xxhash.xxh3_64_intdigest
    hashes = [digest(data[a:b]) for a, b in pairwise(bounds)]
    for i, images in enumerate(samples.images):
        for image in images:
            hashes[i] = digest(image.data, seed=hashes[i])
    out["hash"] = hashes
    return out


def is_empty_answer(conversation: Conversation | Exchange) -> bool:
    """Whether no supervised assistant message has any text."""
    if isinstance(conversation, Exchange):
        return not conversation.answer
    for message in reversed(conversation.messages):
        is_supervised = message.role == "assistant" and message.supervised
        if is_supervised and (message.text or message.tool_calls):
            return False
    return bool(conversation.messages)


def part_folder(folder: Path, part: int) -> Path:
    """Where a part's shards lie until the commit."""
    return folder / f"part-{part:06d}"


def receipt_path(folder: Path, part: int) -> Path:
    """Where a part's receipt lies."""
    return folder / f"part-{part:06d}.json"
