"""Everything that the user can say about a pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

from shardkit.errors import UsageError
from shardkit.format.codec import parse_compression
from shardkit.format.samples import IMAGE_PLACEHOLDER

Packing = Literal["none", "concat", "best-fit"]
OnError = Literal["reject", "fail"]
ImageFit = Literal["pad", "crop", "resize"]

SHARD_SIZE = 64 << 20
"""Bytes of a shard, about, before compression."""
PART_BYTES = 8 << 20
"""Bytes of source rows in a part, about."""
PART_ROWS = 8192
PART_ROWS_WITH_IMAGES = 1024


class PackArguments(TypedDict, total=False):
    """The fields of PackOptions as keyword arguments, for those who pass them on."""

    tokenizer: Required[Any]
    template: Any
    date: str | None
    source_format: str
    system: str | None
    max_length: int | None
    packing: Packing
    special_tokens_in_text: Literal["parse", "literal"]
    shuffle_seed: int | None
    shard_size: int
    compression: str
    on_error: OnError
    max_rejects: float | None
    image_root: str | Path | None
    image_size: int | None
    image_fit: ImageFit
    image_quality: int
    image_tokens: int
    image_token: int
    max_images: int | None
    part_rows: int | None
    part_bytes: int
    engine: Literal["auto", "hf", "fastokens"]
    trust_remote_code: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """The options of a pack; those that decide bytes are in the identity."""

    tokenizer: Any
    """A hub name, a folder, a tokenizer object: what load_tokenizer takes."""
    template: Any = "tokenizer"
    """A name, `tokenizer`, or a file: what load_template takes."""
    date: str | None = None
    source_format: str = "auto"
    system: str | None = None
    max_length: int | None = None
    packing: Packing = "none"
    special_tokens_in_text: Literal["parse", "literal"] = "parse"
    shuffle_seed: int | None = None
    shard_size: int = SHARD_SIZE
    compression: str = "none"
    on_error: OnError = "reject"
    max_rejects: float | None = None
    """A count, or a share of all rows when below 1."""
    image_root: str | Path | None = None
    image_size: int | None = None
    image_fit: ImageFit = "pad"
    image_quality: int = 90
    image_tokens: int = 1
    image_token: int = IMAGE_PLACEHOLDER
    max_images: int | None = None
    part_rows: int | None = None
    part_bytes: int = PART_BYTES
    engine: Literal["auto", "hf", "fastokens"] = "auto"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse options that contradict each other; raises UsageError."""
        parse_compression(self.compression)
        for name in ("max_length", "shard_size", "part_rows", "part_bytes", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(
                    f"{name} is out of range",
                    expected="1 or more",
                    found=str(value),
                    fix=f"Give a positive --{name.replace('_', '-')}.",
                )
        if self.packing != "none" and self.max_length is None:
            raise UsageError(
                f"--packing {self.packing} needs --max-length",
                fix="Say how long a packed row is: --max-length 2048.",
            )
        if self.image_size is not None and self.image_root is None:
            raise UsageError(
                "--image-size is given without --image-root",
                fix="Name the folder that holds the images: --image-root DIR.",
            )
        if self.image_size is not None and not 1 <= self.image_size <= 16384:
            raise UsageError(
                "image_size is out of range",
                expected="1 to 16384 pixels",
                found=str(self.image_size),
                fix="Give the edge in pixels, as --image-size 336.",
            )
        if not 1 <= self.image_quality <= 100:
            raise UsageError(
                "image_quality is out of range",
                expected="1 to 100",
                found=str(self.image_quality),
                fix="Give a JPEG quality, as --image-quality 90.",
            )

    @property
    def rows_of_a_part(self) -> int:
        """The most rows that a part may have."""
        if self.part_rows is not None:
            return self.part_rows
        return PART_ROWS if self.image_root is None else PART_ROWS_WITH_IMAGES

    def image_recipe(self) -> dict[str, object] | None:
        """The image settings of the identity; None for text."""
        if self.image_root is None:
            return None
        is_resized = self.image_size is not None
        return {
            "image_tokens": self.image_tokens,
            "image_token": self.image_token,
            "image_size": self.image_size,
            "image_fit": self.image_fit if is_resized else None,
            "image_quality": self.image_quality if is_resized else None,
            "max_images": self.max_images,
            "processor": None,
        }
