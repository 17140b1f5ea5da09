"""Images of a batch for LLaVA-1.5 and its like: their tokens expanded, and (3, H, W) pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset import Dataset
from shardkit.errors import IdentityMismatch, UsageError
from shardkit.format.samples import IGNORE_INDEX, IMAGE_PLACEHOLDER
from shardkit.loader.collate import PLAIN_ROWS, Buffer, Padding, Pixels, RawBatch
from shardkit.loader.options import ImageLayout, Pictures
from shardkit.loader.picture_stage import PictureStage, black_image, decoded


@dataclass(frozen=True)
class ImageStage(PictureStage):
    """What is done with the images of a batch before it is padded.

    `transform`: a transformers image processor, a shardkit ImageTransform, or any callable that
    takes one RGB PIL image and returns a (3, H, W) array or tensor; None leaves encoded bytes.
    `n_tokens` copies of `token_id` stand for an image in the batch (None: the stored placeholder
    stays). `layout`: `flat` is every image in reading order, `row` one image per row and zeros
    where there is none, as XTuner collates.
    """

    transform: Any = None
    n_tokens: int | None = None
    placeholder: int = IMAGE_PLACEHOLDER
    token_id: int = IMAGE_PLACEHOLDER
    layout: ImageLayout = "flat"
    finish: None = None
    """Nothing is to be done with the padded batch."""

    def expand(self, raw: RawBatch) -> None:
        """Replace each placeholder by the tokens of its image, with labels -100."""
        if self.n_tokens is None or not len(raw.image_rows):
            return
        rows = list(raw.rows)
        documents = None if raw.documents is None else list(raw.documents)
        for i in sorted({*raw.image_rows.tolist()}):
            row = np.frombuffer(rows[i], np.int32).reshape(PLAIN_ROWS, -1)
            if documents is not None:
                starts = np.cumsum(documents[i]) - documents[i]
                n_images = np.add.reduceat(row[0] == self.placeholder, starts, dtype=np.int64)
                documents[i] = documents[i] + n_images * (self.n_tokens - 1)
            rows[i] = expand_row(row, self.placeholder, self.n_tokens, self.token_id).ravel().data
        raw.rows, raw.documents = rows, documents

    @property
    def dummy_ids(self) -> NDArray[np.int32]:
        """(n,) the ids that stand for `black_image`."""
        if self.n_tokens is None:
            return np.array([self.placeholder], np.int32)
        return np.full(self.n_tokens, self.token_id, np.int32)

    def decode(self, raw: RawBatch) -> RawBatch:
        """Fill `pixel_values` from the encoded images; does nothing without a transform."""
        if self.transform is not None and len(raw.images):
            raw.pixel_values, raw.images = self.pixels(raw.images, raw.where_image), ()
        if self.layout == "row" and self.transform is not None:
            self._one_per_row(raw)
        return raw

    def pixels(self, images: Sequence[Buffer], where: Callable[[int], str]) -> Pixels:
        """The pixels of encoded images; raises BadInput, `where(i)` says where image i is from."""
        values = np.empty((len(images), *self._blank.shape), np.float32)

        def place(i: int) -> NDArray[np.float32] | None:
            array = decoded(partial(self._apply, images[i]), partial(where, i))
            if array.shape != values.shape[1:]:
                return array
            values[i] = array
            return None

        others = self.mapped(place, list(range(len(images))))
        if all(array is None for array in others):
            return values
        arrays = [values[i] if array is None else array for i, array in enumerate(others)]
        found = stack(arrays)
        return arrays if found is None else found

    @cached_property
    def _apply(self) -> Callable[[Buffer], NDArray[np.float32]]:
        return as_decoder(self.transform)

    @cached_property
    def _blank(self) -> NDArray[np.float32]:
        return np.zeros_like(self._apply(black_image()))

    def _one_per_row(self, raw: RawBatch) -> None:
        n_rows = len(raw.rows) + raw.n_padding_rows
        if len({*raw.image_rows.tolist()}) < len(raw.image_rows):
            raise UsageError(
                "a row with more than one image in a batch of one image per row",
                fix="Use image_layout='flat', or pack with --max-images 1.",
            )
        values = np.broadcast_to(self._blank, (n_rows, *self._blank.shape)).copy()
        if raw.pixel_values is not None:
            for row, image in zip(raw.image_rows.tolist(), raw.pixel_values, strict=True):
                values[row] = image
        raw.pixel_values, raw.image_rows = values, np.arange(n_rows)


def stage_of(options: Pictures, padding: Padding, members: Sequence[Dataset]) -> ImageStage:
    """What is done with the images of datasets, whose placeholders are the same.

    Raises UsageError for options that contradict each other, and what make_stage raises.
    """
    stage = ImageStage(
        transform=options.image_transform,
        n_tokens=options.expand_image_tokens,
        token_id=IMAGE_PLACEHOLDER if options.image_token_id is None else options.image_token_id,
        pad=options.image_pad,
        layout=options.image_layout,
        padding=padding,
        n_threads=options.image_threads,
    )
    _refuse_whole_processor(stage.transform, members[0].root)
    _refuse_idle(options)
    if options.fast_pixels:
        raise UsageError(
            "fast_pixels with a dataset that was not packed with a processor",
            where=members[0].root,
            fix="Leave it out; for LLaVA-1.5, shardkit.images.ImageTransform is the quick way.",
        )
    made = [
        make_stage(
            stage, one.manifest.image_recipe, one.root, one.manifest.recipe.get("max_length")
        )
        for one in members
    ]
    with_images = (
        found
        for found, one in zip(made, members, strict=True)
        if one.manifest.image_recipe is not None
    )
    return next(with_images, stage)


def _refuse_idle(options: Pictures) -> None:
    """Raise UsageError for an option that does nothing without another one."""
    if options.image_token_id is not None and options.expand_image_tokens is None:
        raise UsageError(
            "image_token_id is given without expand_image_tokens",
            fix="Give expand_image_tokens= too, or leave it out: placeholders then stay as stored.",
        )
    if options.image_layout != "flat" and options.image_transform is None:
        raise UsageError(
            f"image_layout={options.image_layout!r} is given without image_transform",
            fix="Give image_transform= too, or leave it out: encoded images are a flat list.",
        )


def _refuse_whole_processor(transform: object, where: str) -> None:
    """Raise UsageError where a processor of text and pictures is to make pixels alone."""
    whole = getattr(transform, "real", transform)  # of a shardkit.processors.VisionProcessor
    if hasattr(whole, "image_processor") and hasattr(whole, "tokenizer"):
        raise UsageError(
            "image_transform is a whole processor",
            where=where,
            expected="an image processor, or a function of a picture",
            found=type(whole).__name__,
            fix="Pack the data with --processor and give processor= here; on the LLaVA-1.5 path, "
            "give its image_processor.",
        )


def make_stage(
    stage: ImageStage,
    recipe: Mapping[str, Any] | None,
    where: str,
    max_length: int | None = None,
) -> ImageStage:
    """The stage with what a dataset's recipe of images says of placeholders, where it has one.

    Raises UsageError when the image token's id is missing, IdentityMismatch when images take
    another number of tokens than the dataset was packed for.
    """
    if recipe is None:
        return stage
    stored = int(recipe.get("image_token", IMAGE_PLACEHOLDER))
    counted = recipe.get("image_tokens")
    token_id = stored if stage.token_id == IMAGE_PLACEHOLDER else stage.token_id
    if stage.n_tokens is not None and token_id < 0:
        raise UsageError(
            "expanding image tokens needs the id of the image token",
            where=where,
            found=f"placeholder {stored}",
            fix="Give image_token_id=, for instance model.config.image_token_id.",
        )
    if stage.n_tokens is not None and counted not in (None, 1, stage.n_tokens):
        raise IdentityMismatch(
            "packed with another number of tokens an image than the one given",
            where=where,
            expected=f"{counted} (--image-tokens)",
            found=f"expand_image_tokens={stage.n_tokens}",
            fix="Use the number that the dataset was packed with, or pack the data again.",
        )
    is_uncounted = counted in (None, 1) and max_length is not None
    if stage.n_tokens is not None and stage.n_tokens > 1 and is_uncounted:
        raise IdentityMismatch(
            f"packed for rows of {max_length} tokens with one token an image: expanded, they are "
            "longer",
            where=where,
            expected="1 (--image-tokens)",
            found=f"expand_image_tokens={stage.n_tokens}",
            fix=f"Pack again with --image-tokens {stage.n_tokens}: --max-length counts them then.",
        )
    return replace(stage, placeholder=stored, token_id=token_id)


def expand_row(
    row: NDArray[np.int32], placeholder: int, n_tokens: int, token_id: int
) -> NDArray[np.int32]:
    """A (2, n) row with each placeholder replaced by n_tokens image tokens, whose label is -100.

    ids [5, -200, 6] with 2 tokens of id 9: repeated [1, 2, 1] times, then filled: [5, 9, 9, 6].
    """
    is_image = row[0] == placeholder
    counts = np.where(is_image, n_tokens, 1)
    wide = np.repeat(row, counts, axis=1)
    is_wide = np.repeat(is_image, counts)
    wide[0, is_wide] = token_id
    wide[1, is_wide] = IGNORE_INDEX
    return wide


def as_decoder(transform: Any) -> Callable[[Buffer], NDArray[np.float32]]:
    """One function from encoded bytes to (3, H, W) float32 for every kind of transform.

    It raises BadImage for what cannot be decoded, UsageError for pixels of another shape.
    """
    from shardkit.images.decode import decode_rgb

    ours = sys.modules.get("shardkit.images.transform")  # loaded when `transform` is one of ours
    if ours is not None and isinstance(transform, ours.ImageTransform):
        return lambda data: _array(transform([data]))[0]
    if callable(getattr(transform, "preprocess", None)):

        def process(data: Buffer) -> NDArray[np.float32]:
            found = transform(images=[decode_rgb(data)], return_tensors="np")
            pixels = _array(found["pixel_values"])
            if len(found) > 1 or pixels.ndim != 4 or len(pixels) != 1:
                raise _other_outputs(transform, found)
            return _channels_first(pixels[0], transform)

        return process
    return lambda data: _channels_first(_array(transform(decode_rgb(data))), transform)


def _channels_first(pixels: NDArray[np.float32], transform: object) -> NDArray[np.float32]:
    if pixels.ndim != 3 or len(pixels) != 3:
        raise _other_outputs(transform, {"pixels": pixels})
    return pixels


def _other_outputs(transform: Any, found: Mapping[str, Any]) -> UsageError:
    shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in found.items())
    return UsageError(
        "image_transform makes something else of a picture than one array of pixels",
        where=type(transform).__name__,
        expected="(3, H, W); of a processor pixel_values (1, 3, H, W) and nothing else",
        found=shapes,
        fix="A processor that cuts a picture into patches or tiles needs its own count of tokens: "
        "it cannot be used as image_transform.",
    )


def stack(arrays: list[NDArray[np.float32]]) -> Pixels | None:
    """The arrays as one where their shapes agree; None when there are none."""
    if len({array.shape for array in arrays}) > 1:
        return arrays
    return np.stack(arrays) if arrays else None


def _array(values: Any) -> NDArray[np.float32]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array: NDArray[np.float32] = np.ascontiguousarray(values, np.float32)
    return array
