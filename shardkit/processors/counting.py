"""What is a picture of a size called in the text? The part of it that needs no pixels.

A function for each way of cutting pictures up: `replace_image_token` of the processor reads what
it gives. It gives None where only the processor itself can tell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from shardkit.processors.family import Facts, Size

_MOST_PIXELS = 1 << 26
"""Pixels of a picture after its shorter edge is resized: a strip of more would take gigabytes."""


def module_of(processor: Any) -> Any:
    """The module in which the image processor is written; its functions of sizes stand there."""
    return sys.modules[type(processor.image_processor).__module__]


def setting(processor: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """A setting of the image processor, as it is called by its processor."""
    value = arguments.get(name)
    return getattr(processor.image_processor, name, None) if value is None else value


def qwen_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """Qwen-VL: the grid of patches, (time, height, width), of the size that it resizes to."""
    resize = getattr(module_of(processor), "smart_resize", None)
    if resize is None or not setting(processor, arguments, "do_resize"):
        return None
    patch = setting(processor, arguments, "patch_size")
    limits = setting(processor, arguments, "size")
    height, width = resize(
        size[1],
        size[0],
        factor=patch * setting(processor, arguments, "merge_size"),
        min_pixels=limits["shortest_edge"],
        max_pixels=limits["longest_edge"],
    )
    return {"image_grid_thw": np.array([[1, height // patch, width // patch]])}


def internvl_facts(
    processor: Any, arguments: Mapping[str, Any], size: Size, n: int
) -> Facts | None:
    """InternVL: how many tiles it cuts."""
    count = processor.image_processor.get_number_of_image_patches
    return {"num_patches": [int(count(size[1], size[0], dict(arguments)))]}


def tiled_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """LLaVA-NeXT and OneVision: what their count reads is the size, and that of a tile."""
    tile = setting(processor, arguments, "crop_size") or setting(processor, arguments, "size")
    edges = {name: tile[name] for name in ("height", "width", "shortest_edge") if name in tile}
    height = edges.get("height") or edges.get("shortest_edge")
    if not height or edges.get("width", height) != height:
        return None
    pixels = np.broadcast_to(np.float32(0), (1, 1, 3, height, height))
    sizes = np.array([[size[1], size[0]]] * n)
    return {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": [n]}


def grid_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """Idefics3 and SmolVLM: rows and columns of tiles."""
    count = processor.image_processor.get_number_of_image_patches
    _, rows, columns = count(size[1], size[0], dict(arguments))
    return {"rows": [[rows]], "cols": [[columns]]}


def pixtral_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """Pixtral: the (height, width) that it resizes to."""
    resize = getattr(module_of(processor), "get_resize_output_image_size", None)
    edge = (setting(processor, arguments, "size") or {}).get("longest_edge")
    if resize is None or not edge or not setting(processor, arguments, "do_resize"):
        return None
    blank = np.broadcast_to(np.uint8(0), (3, size[1], size[0]))
    patch = processor.patch_size * processor.spatial_merge_size
    found = resize(blank, size=edge, patch_size=patch, input_data_format="channels_first")
    return {"image_sizes": [tuple(map(int, found))]}


def one_size_facts(
    processor: Any, arguments: Mapping[str, Any], size: Size, n: int
) -> Facts | None:
    """LLaVA-1.5: every picture is cropped to one size, after its shorter edge is resized.

    Raises ValueError for a strip so long that resizing it would take gigabytes.
    """
    crop = setting(processor, arguments, "crop_size")
    if not setting(processor, arguments, "do_center_crop") or not crop:
        return None
    edge = (setting(processor, arguments, "size") or {}).get("shortest_edge") or 0
    if edge * edge * max(size) > _MOST_PIXELS * min(size):
        raise ValueError(f"its shorter edge made {edge}, it has over {_MOST_PIXELS:,} pixels")
    shape = (1, 3, crop["height"], crop["width"])
    return {"pixel_values": np.broadcast_to(np.float32(0), shape)}


def gemma_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """Gemma 3: no crops, unless it pans and scans, which only the processor can tell."""
    return None if setting(processor, arguments, "do_pan_and_scan") else {"num_crops": [0]}


def row_of(name: str) -> Any:
    """The GridOf of a family whose grid of a picture is its row of the output `name`."""

    def grid(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
        return tuple(int(value) for value in np.atleast_1d(np.asarray(output[name])[i]))

    return grid


def rows_and_columns(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
    """The GridOf of Idefics3 and SmolVLM: rows and columns of tiles."""
    rows, columns = ([n for row in output[name] for n in row] for name in ("rows", "cols"))
    return int(rows[i]), int(columns[i])


def no_grid(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
    """The GridOf of a family that makes one size of every picture."""
    return ()
