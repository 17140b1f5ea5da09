"""Pictures of a batch as their processor makes them, and all that a model wants with them.

Pixels come from the processor's own image code, one picture (or one conversation) at a time, in
threads; the table of families joins them. The batch then gets the family's keys and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import CorruptShard, UsageError
from shardkit.format.recipe import PREFERENCE
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.collate import PLAIN_ROWS, Batch, Buffer, Padding, RawBatch
from shardkit.loader.options import Pictures
from shardkit.loader.picture_stage import PictureStage, black_image, decoded
from shardkit.processors import (
    Arrays,
    FastPixels,
    Place,
    VisionProcessor,
    load_processor,
    mrope_positions,
    refuse_other_processor,
)


@dataclass(frozen=True)
class VisionStage(PictureStage):
    """What is done with the pictures of a batch of a dataset that was packed with a processor.

    `fast`: pixels within two grey levels of the processor's, in less time.
    """

    processor: VisionProcessor
    fast: bool = False

    @property
    def transform(self) -> VisionProcessor:
        """What makes the pixels."""
        return self.processor

    def expand(self, raw: RawBatch) -> None:
        """Nothing: the tokens of pictures are in the rows."""

    @cached_property
    def dummy_ids(self) -> NDArray[np.int32]:
        """(n,) the ids that stand for `black_image`."""
        picture = self.processor.picture(_size_of(black_image()))
        runs, ids = iter(picture.runs), list[int]()
        found = self.processor.real.tokenizer(picture.text, add_special_tokens=False)
        for token in found["input_ids"]:
            ids += [token] * (next(runs) if token == self.processor.image_token_id else 1)
        return np.array(ids, np.int32)

    def decode(self, raw: RawBatch) -> RawBatch:
        """Fill `pixel_values` and `arrays` from the encoded pictures."""
        if not len(raw.images):
            return raw
        documents = raw.image_documents if raw.image_documents is not None else raw.image_rows
        arrays = self._arrays(raw, documents)
        place = Place(raw.image_rows, documents, len(raw.rows) + raw.n_padding_rows)
        joined = self.processor.join(arrays, place)
        self._check_counts(raw, joined)
        raw.pixel_values = joined.pop("pixel_values")
        raw.arrays, raw.images = joined, ()
        return raw

    def _arrays(self, raw: RawBatch, documents: NDArray[np.int64]) -> list[Arrays]:
        """The arrays of each picture; pictures of a document together where the family wants it."""
        from shardkit.images.decode import decode_rgb
        from shardkit.images.transform import fast_rgb

        n = len(raw.images)
        borders = [*range(n + 1)]
        if self.processor.by_document:
            borders = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), n]

        def make(group: tuple[int, int]) -> list[Arrays]:
            maker = self.maker
            if isinstance(maker, FastPixels):
                return maker.arrays(
                    _decoded(raw, group, fast_rgb), lambda: _decoded(raw, group, decode_rgb)
                )
            return maker.arrays(_decoded(raw, group, decode_rgb))

        found = self.mapped(make, list(pairwise(borders)))
        return [arrays for group in found for arrays in group]

    @cached_property
    def maker(self) -> VisionProcessor | FastPixels:
        """What makes the arrays of pictures; raises UsageError where they cannot be made fast."""
        return FastPixels(self.processor) if self.fast else self.processor

    def _check_counts(self, raw: RawBatch, joined: Arrays) -> None:
        """Refuse a picture whose grid is not that of its tokens (a grid is all that tells it)."""
        grids = joined.get("image_grid_thw")
        if grids is None:
            return
        merge = int(self.processor.real.image_processor.merge_size)
        expected = int((grids.prod(axis=1) // merge**2).sum())
        token = self.processor.image_token_id
        rows = [np.frombuffer(row, np.int32)[: len(row) // PLAIN_ROWS] for row in raw.rows]
        found = sum(int(np.count_nonzero(row == token)) for row in rows)
        found //= 2 if raw.task == PREFERENCE else 1  # a picture stands in both of its documents
        if found != expected:
            raise CorruptShard(
                "the rows have other image tokens than their pictures make",
                where=raw.where_image(0),
                expected=f"{expected}",
                found=f"{found}",
                fix="Run: shardkit verify DATASET --processor NAME.",
            )

    def batch_of(self, samples: Sequence[Mapping[str, Any]], raw: RawBatch) -> Batch:
        """The batch of samples whose pictures are encoded; `raw` holds their token rows."""
        counts = [len(sample.get("images", ())) for sample in samples]
        raw.images = [image for sample in samples for image in sample.get("images", ())]
        raw.image_rows = np.repeat(np.arange(len(samples)), counts)
        if raw.documents is not None and raw.is_packed and raw.images:
            n_before, numbers = 0, []
            for sample, documents in zip(samples, raw.documents, strict=True):
                if "image_documents" in sample:
                    numbers.append(sample["image_documents"].numpy() + n_before)
                n_before += len(documents)
            raw.image_documents = np.concatenate(numbers)
        return BatchMaker(self.padding, finish=self.finish)(self(raw))[0]

    @cached_property
    def finish(self) -> Finish:
        """What is done when the batch is padded."""
        processor = self.processor
        is_mrope = processor.family.positions == "mrope"
        return Finish(
            image_token_id=processor.image_token_id,
            type_key=processor.family.type_key,
            type_ids=processor.type_ids,
            merge_size=int(processor.real.image_processor.merge_size) if is_mrope else None,
        )


@dataclass(frozen=True, slots=True)
class Finish:
    """Adds what depends on the padded rows: the kinds of tokens, and positions of pictures.

    Of a model that counts in three dimensions `position_ids` become int64 (4, B, T): the places in
    the document, then time, height and width.
    """

    image_token_id: int
    type_key: str | None
    type_ids: tuple[int, ...]
    merge_size: int | None
    """Patches along each side of an image token; None for models that count in one dimension."""

    def __call__(self, batch: Batch) -> None:
        """Complete the batch in place."""
        ids = batch["input_ids"].numpy()
        if self.type_key is not None:
            batch[self.type_key] = torch.from_numpy(np.isin(ids, self.type_ids).astype(np.int64))
        if self.merge_size is not None:
            grids = batch.get("image_grid_thw")
            found = mrope_positions(
                batch["position_ids"].numpy().ravel(),
                (ids == self.image_token_id).ravel(),
                np.zeros((0, 3), np.int64) if grids is None else grids.numpy(),
                self.merge_size,
            )
            batch["position_ids"] = torch.from_numpy(found.reshape(4, *ids.shape))


def vision_stage_of(
    source: object, options: Pictures, padding: Padding, members: Sequence[Dataset]
) -> VisionStage | None:
    """What is done with the pictures of datasets that were packed with a processor.

    `source` names it. None when none of them was, and when no processor is given: pictures stay
    encoded then. Raises IdentityMismatch naming each setting that differs, ProcessorError and
    UsageError.
    """
    packed = [
        ((one.manifest.image_recipe or {}).get("processor"), one.root)
        for one in members
        if one.manifest.image_recipe is not None
    ]
    with_one = [(identity, where) for identity, where in packed if identity is not None]
    if not with_one:
        if source is not None:
            raise UsageError(
                "the dataset was not packed with a processor",
                where=members[0].root,
                fix="Pack it again with --processor, or give image_transform for LLaVA-1.5.",
            )
        return None
    _refuse_others(source, options, with_one[0][1])
    if source is None:
        return None
    processor = load_processor(source)
    for identity, where in with_one:
        refuse_other_processor(processor, identity, where)
    stage = VisionStage(
        processor,
        options.fast_pixels,
        pad=options.image_pad,
        padding=padding,
        n_threads=options.image_threads,
    )
    _ = stage.maker  # refuses a processor whose pixels cannot be made so
    return stage


def _refuse_others(source: object, options: Pictures, where: str) -> None:
    """Raise UsageError for options of pictures that a processor replaces."""
    given = {
        "image_transform": options.image_transform,
        "expand_image_tokens": options.expand_image_tokens,
        "image_token_id": options.image_token_id,
        "image_layout": None if options.image_layout == "flat" else options.image_layout,
    }
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(
            f"{', '.join(names)} with a dataset that was packed with a processor",
            where=where,
            fix="Leave them out, and give processor=: the one that the dataset was packed with.",
        )
    if source is None and options.image_pad != "none":
        raise UsageError(
            "image_pad needs the processor that makes the dummy picture",
            where=where,
            fix="Give processor=: the one that the dataset was packed with.",
        )
    if source is None and options.fast_pixels:
        raise UsageError(
            "fast_pixels without the processor whose pixels are made",
            where=where,
            fix="Give processor=: the one that the dataset was packed with.",
        )


def _decoded(raw: RawBatch, group: tuple[int, int], decode: Callable[[Buffer], Any]) -> list[Any]:
    """Images group[0] to group[1] - 1 of a batch, decoded; raises BadInput."""
    return [
        decoded(partial(decode, raw.images[i]), partial(raw.where_image, i)) for i in range(*group)
    ]


def _size_of(data: Buffer) -> tuple[int, int]:
    from shardkit.images.decode import upright_size

    return upright_size(data)
