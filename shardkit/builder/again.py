"""The options of a finished dataset, from its manifest, to build rows of the same recipe again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardkit.builder.options import PackOptions
from shardkit.errors import BadInput
from shardkit.format.builds import Build
from shardkit.format.layout import TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest
from shardkit.tokens import load_tokenizer


def options_again(
    root: Path,
    manifest: Manifest,
    build: Build,
    *,
    image_root: Path | None = None,
    tokenizer: object = None,
    template: object = None,
    **more: Any,
) -> PackOptions:
    """The options of a build of the dataset at `root`, with the tokenizer that lies in it.

    `tokenizer`, `template`: instead of the dataset's own (a template that was a file is not in
    it). `more`: options that decide no bytes. Raises BadInput when images need their folder.
    """
    recipe = manifest.recipe
    images = recipe.get("images") or {}
    if images and image_root is None:
        raise BadInput("the dataset holds images", fix="Name their folder: --image-root DIR.")
    packed = recipe["template"]
    return PackOptions(
        tokenizer=load_tokenizer(tokenizer or root / TOKENIZER_FOLDER),
        template=template or packed["name"],
        date=packed.get("date"),
        source_format=recipe["source_format"],
        system=recipe["system"],
        max_length=recipe["max_length"],
        packing="none" if recipe["packing"] == "kept" else recipe["packing"],
        special_tokens_in_text=recipe["special_tokens_in_text"],
        shuffle_seed=build.identity["shuffle_seed"],
        compression=manifest.compression,
        image_root=image_root if images else None,
        **{name: value for name, value in images.items() if value is not None},
        **build.identity["layout"],
        **more,
    )
