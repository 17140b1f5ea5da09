"""The options of a pack as one value: checked together, kept in the identity, taken from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardkit.builder.options.conflicts import refuse_conflicts
from shardkit.builder.options.images import ImageOptions
from shardkit.builder.options.kept import kept_options, kept_values
from shardkit.errors import BadInput, UsageError
from shardkit.format.builds import Build
from shardkit.format.layout import TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest
from shardkit.options import chosen
from shardkit.sources import SourceFormat, source_named
from shardkit.tokens import load_tokenizer, template_of

N_PARTS = 64
"""Parts of a large input, until they are as large as they may be."""
PART_BYTES = 8 << 20
"""Bytes of source rows in a part, at least, where an input has so many."""
MOST_PART_BYTES = 48 << 20
"""Bytes of source rows in a part, at most: a worker holds the tokens of a part that is packed."""
PART_ROWS = 8192
"""Rows of a part, at most, while N_PARTS parts are enough."""
PART_ROWS_WITH_IMAGES = 1024
"""Rows of a part, at most, with a folder of pictures."""


class PackOptions(ImageOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a pack; those that decide bytes are in the identity."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other; raises UsageError."""
        refuse_conflicts(self)
        if self.source_format != "auto":
            self.check_family(source_named(self.source_format))

    def check_family(self, source: SourceFormat) -> None:
        """Raise UsageError where rows of this format cannot be treated as asked."""
        if self.overlong == "split" and source.family != "text":
            raise UsageError(
                "--overlong split is for documents of text",
                found=f"rows of the format {source.name}",
                fix="Rows with answers are cut (--overlong cut) or left out (--overlong drop): an "
                "answer without its question teaches something else.",
            )

    def part_size(self, n_rows: int, n_bytes: int) -> dict[str, int]:
        """The most rows and about the bytes of a part, for an input of so many rows and bytes.

        A function of the input and the options alone. Parts grow with the input, so that a shard
        has the size that was asked for: 64 of them from 8,192 rows and 8 MiB each, then larger
        ones up to 48 MiB, then more. With `image_root` a part has 1,024 rows at most.
        """
        rows = PART_ROWS_WITH_IMAGES
        if self.image_root is None:
            rows = max(PART_ROWS, n_rows // N_PARTS)
        size = min(max(PART_BYTES, n_bytes // N_PARTS), MOST_PART_BYTES)
        return {"part_rows": self.part_rows or rows, "part_bytes": self.part_bytes or size}

    def kept(self, place: str) -> dict[str, Any]:
        """The options that the identity keeps in `place`, by name."""
        return kept_values(self, place)

    def image_recipe(self, in_rows: bool = False) -> dict[str, object] | None:
        """The image settings of the identity; None for text.

        `in_rows`: whether records bring pictures along, or may (with a processor).
        """
        if self.image_root is None and not in_rows:
            return None
        recipe = self.kept("images") | {"processor": None}
        if self.image_size is None:
            recipe["image_fit"] = None
        if self.image_size is None and self.store_max_pixels is None:
            recipe["image_quality"] = None
        if self.image_root is None:
            recipe["in_rows"] = True
        return recipe

    @classmethod
    def of(cls, manifest: Manifest, build: Build, **more: object) -> PackOptions:
        """The options of a build of a finished dataset, to build rows of the same recipe again.

        `more`: what a manifest does not hold (tokenizer, template, image_root), and options that
        decide no bytes; None leaves the default. Settings of a later minor version are ignored.
        Raises BadInput when images need their folder, UsageError.
        """
        recipe = manifest.recipe
        images = recipe.get("images") or {}
        if images and not images.get("in_rows") and more.get("image_root") is None:
            raise BadInput("the dataset holds images", fix="Name their folder: --image-root DIR.")
        places = {
            "recipe": recipe,
            "images": images,
            "layout": build.identity["layout"],
            "identity": build.identity,
        }
        given: dict[str, object] = {"compression": manifest.compression}
        for name, kept in kept_options(cls).items():
            value = places[kept.place].get(kept.name or name)
            if value is not None:
                given[name] = value
        if images.get("processor") is not None:
            given.pop("image_token", None)  # it is the processor's
        if given["packing"] == "kept":
            given["packing"] = "none"
        if given["packing"] == "none":
            given.pop("pack_scope", None)  # of a repacked dataset
        if isinstance(more.get("template"), str | Path | None):  # a template has its own
            given["date"] = recipe["template"].get("date")
            given["template_args"] = recipe["template"].get("args")
        given |= {name: value for name, value in more.items() if value is not None}
        if not images:
            given.pop("image_root", None)
        return chosen(cls, given)


def of_dataset(
    manifest: Manifest, root: Path, tokenizer: object = None, template: object = None
) -> dict[str, object]:
    """The tokenizer and template that lie in a dataset, or those given in their place.

    The recipe holds the template's text: no file of it is needed, and no name is looked up.
    """
    loaded = load_tokenizer(tokenizer or root / TOKENIZER_FOLDER)
    return {
        "tokenizer": loaded,
        "template": template or template_of(manifest.recipe["template"], loaded),
    }
