"""Options of pictures: where they are, what stands for them in the ids, how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from shardkit.builder.options.kept import IMAGES, IN_IMAGES, IN_IMAGES_IF_GIVEN
from shardkit.builder.options.tokens import TokenOptions
from shardkit.builder.options.values import id_or_text, named_value
from shardkit.format.samples import IMAGE_PLACEHOLDER
from shardkit.options import FilePath, Flag, Positive, path_of
from shardkit.units import side_of


class ImageOptions(TokenOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of rows, tokens, and what becomes of a row's pictures: all fields of a pack."""

    image_root: Annotated[
        FilePath | None, Flag("where image paths begin", "DIR", IMAGES, parse=path_of)
    ] = None
    image_tokens: Annotated[
        Positive, Flag("tokens of an image in the model", "N", IMAGES), IN_IMAGES
    ] = 1
    image_token: Annotated[
        int | str,
        Flag("the placeholder (default: -200)", "ID_OR_TEXT", IMAGES, parse=id_or_text),
        IN_IMAGES,
    ] = IMAGE_PLACEHOLDER
    """An id, or the text of a token of the tokenizer."""
    max_pixels: Annotated[
        Positive | None, Flag("the processor's max_pixels, of a picture", "N", IMAGES)
    ] = None
    min_pixels: Annotated[
        Positive | None, Flag("the processor's min_pixels, of a picture", "N", IMAGES)
    ] = None
    processor_args: Annotated[
        Mapping[str, Any] | None,
        Flag(
            "another setting of the processor (may be repeated)",
            "NAME=VALUE",
            IMAGES,
            name="--processor-arg",
            parse=named_value,
        ),
    ] = None
    """Settings that replace those of the processor's files, by name."""
    image_size: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=16384)] | None,
        Flag("store JPEGs of N x N pixels", "N", IMAGES, parse=side_of),
        IN_IMAGES,
    ] = None
    image_fit: Annotated[
        Literal["pad", "crop", "resize"], Flag("how they get there", group=IMAGES), IN_IMAGES
    ] = "pad"
    store_max_pixels: Annotated[
        Positive | None,
        Flag("store a picture of more pixels as a JPEG of N", "N", IMAGES),
        IN_IMAGES_IF_GIVEN,
    ] = None
    """Pixels of a stored picture, at most: a larger one is made smaller, its shape stays.

    A processor counts the tokens of what is stored.
    """
    image_quality: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)], Flag("1 to 100", "Q", IMAGES), IN_IMAGES
    ] = 90
    max_images: Annotated[
        Positive | None, Flag("of a row, and of a pack", "N", IMAGES), IN_IMAGES
    ] = None

    @property
    def processor_arguments(self) -> dict[str, Any]:
        """All settings that replace the processor's own."""
        limits = {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}
        given = {name: value for name, value in limits.items() if value is not None}
        return {**(self.processor_args or {}), **given}
