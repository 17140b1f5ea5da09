"""Where does a new vision-language model go? Here: one entry of `PROCESSORS`.

The contract test (tests/contracts/test_processors.py) runs over the table: ids, pixels and logits
of every entry are compared with the processor and a small model of transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardkit.processors.family import Arrays, Facts, Family, Place, Scale, Size

_OWN_TOKENS = ("image_token",)
_MOST_PIXELS = 1 << 26
"""Of a picture after its shorter edge is resized: a strip of more would take gigabytes."""


def joined(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """All pictures after each other, key by key."""
    return {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}


def joined_padded(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """The same, with zeros after the pictures that have fewer tiles, or fewer pixels."""
    return {name: _padded([one[name] for one in arrays]) for name in arrays[0]}


def joined_by_document(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """LLaVA-OneVision's: padded tiles, and how many pictures each document has."""
    named = [{k: v for k, v in one.items() if k != "batch_num_images"} for one in arrays]
    batch = joined_padded(named, place)
    batch["batch_num_images"] = np.unique(place.documents, return_counts=True)[1].astype(np.int64)
    return batch


def joined_by_row(arrays: Sequence[Arrays], place: Place) -> Arrays:
    """Idefics3's: the tiles of a row of the batch in one row, zeros after them."""
    n_tiles = np.array([one["pixel_values"].shape[1] for one in arrays])
    in_row = np.bincount(place.rows, n_tiles, place.n_rows).astype(np.int64)
    batch: Arrays = {}
    for name in ("pixel_values", "pixel_attention_mask"):
        shapes = np.array([one[name].shape[2:] for one in arrays])
        like = arrays[0][name]
        values = np.zeros((place.n_rows, int(in_row.max()), *shapes.max(axis=0)), like.dtype)
        filled = np.zeros(place.n_rows, np.int64)
        for one, row in zip(arrays, place.rows.tolist(), strict=True):
            tiles = one[name][0]
            at = filled[row]
            region = (row, slice(at, at + len(tiles)), *map(slice, tiles.shape[1:]))
            values[region] = tiles
            filled[row] += len(tiles)
        batch[name] = values
    return batch


def _padded(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenated along the first axis, the others padded with zeros at their ends."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    values = np.zeros((sum(map(len, arrays)), *shape), arrays[0].dtype)
    at = 0
    for array in arrays:
        values[(slice(at, at + len(array)), *map(slice, array.shape[1:]))] = array
        at += len(array)
    return values


def _module_of(processor: Any) -> Any:
    return sys.modules[type(processor.image_processor).__module__]


def is_of_pillow(image_processor: Any) -> bool:
    """Whether it resizes with Pillow; torchvision's other classes are as quick as Pillow."""
    return any(cls.__name__.endswith("Pil") for cls in type(image_processor).__mro__)


def _setting(processor: Any, arguments: Mapping[str, Any], name: str) -> Any:
    value = arguments.get(name)
    return getattr(processor.image_processor, name, None) if value is None else value


def _qwen_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    resize = getattr(_module_of(processor), "smart_resize", None)
    if resize is None or not _setting(processor, arguments, "do_resize"):
        return None
    patch = _setting(processor, arguments, "patch_size")
    limits = _setting(processor, arguments, "size")
    height, width = resize(
        size[1],
        size[0],
        factor=patch * _setting(processor, arguments, "merge_size"),
        min_pixels=limits["shortest_edge"],
        max_pixels=limits["longest_edge"],
    )
    return {"image_grid_thw": np.array([[1, height // patch, width // patch]])}


def _qwen_patches(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """One resize, then rows of patches, those that are merged beside each other."""
    facts = _qwen_facts(processor, arguments, picture.size, 1)
    resample = _setting(processor, arguments, "resample")
    if facts is None or resample is None or not is_of_pillow(processor.image_processor):
        return None
    patch, merge, times = (
        int(_setting(processor, arguments, name))
        for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    rows, columns = (int(n) // merge for n in facts["image_grid_thw"][0, 1:])
    size = (columns * merge * patch, rows * merge * patch)
    small = picture if picture.size == size else picture.resize(size, Image.Resampling(resample))
    grey = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1)).reshape(3, -1)
    cut = scale(grey).reshape(3, rows, merge, patch, columns, merge, patch)
    out = np.empty((rows, columns, merge, merge, 3, times, patch, patch), np.float32)
    out[...] = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    return {"pixel_values": out.reshape(rows * columns * merge**2, -1), **facts}


def _internvl_facts(
    processor: Any, arguments: Mapping[str, Any], size: Size, n: int
) -> Facts | None:
    count = processor.image_processor.get_number_of_image_patches
    return {"num_patches": [int(count(size[1], size[0], dict(arguments)))]}


def _tiled_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """LLaVA-NeXT and OneVision: what their count reads is the size, and that of a tile."""
    tile = _setting(processor, arguments, "crop_size") or _setting(processor, arguments, "size")
    edges = {name: tile[name] for name in ("height", "width", "shortest_edge") if name in tile}
    height = edges.get("height") or edges.get("shortest_edge")
    if not height or edges.get("width", height) != height:
        return None
    pixels = np.broadcast_to(np.float32(0), (1, 1, 3, height, height))
    sizes = np.array([[size[1], size[0]]] * n)
    return {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": [n]}


def _grid_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    """Idefics3 and SmolVLM: rows and columns of tiles."""
    count = processor.image_processor.get_number_of_image_patches
    _, rows, columns = count(size[1], size[0], dict(arguments))
    return {"rows": [[rows]], "cols": [[columns]]}


def _pixtral_facts(
    processor: Any, arguments: Mapping[str, Any], size: Size, n: int
) -> Facts | None:
    resize = getattr(_module_of(processor), "get_resize_output_image_size", None)
    edge = (_setting(processor, arguments, "size") or {}).get("longest_edge")
    if resize is None or not edge or not _setting(processor, arguments, "do_resize"):
        return None
    blank = np.broadcast_to(np.uint8(0), (3, size[1], size[0]))
    patch = processor.patch_size * processor.spatial_merge_size
    found = resize(blank, size=edge, patch_size=patch, input_data_format="channels_first")
    return {"image_sizes": [tuple(map(int, found))]}


def _one_size_facts(
    processor: Any, arguments: Mapping[str, Any], size: Size, n: int
) -> Facts | None:
    """LLaVA-1.5: every picture is cropped to the same size, after its shorter edge is resized."""
    crop = _setting(processor, arguments, "crop_size")
    if not _setting(processor, arguments, "do_center_crop") or not crop:
        return None
    edge = (_setting(processor, arguments, "size") or {}).get("shortest_edge") or 0
    if edge * edge * max(size) > _MOST_PIXELS * min(size):
        raise ValueError(f"its shorter edge made {edge}, it has over {_MOST_PIXELS:,} pixels")
    shape = (1, 3, crop["height"], crop["width"])
    return {"pixel_values": np.broadcast_to(np.float32(0), shape)}


def _gemma_facts(processor: Any, arguments: Mapping[str, Any], size: Size, n: int) -> Facts | None:
    return None if _setting(processor, arguments, "do_pan_and_scan") else {"num_crops": [0]}


def _row_of(name: str) -> Any:
    """The grid of a picture is its row of an output."""

    def grid(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
        return tuple(int(value) for value in np.atleast_1d(np.asarray(output[name])[i]))

    return grid


def _rows_and_columns(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
    rows, columns = ([n for row in output[name] for n in row] for name in ("rows", "cols"))
    return int(rows[i]), int(columns[i])


def _no_grid(output: Mapping[str, Any], i: int) -> tuple[int, ...]:
    return ()


def _qwen(*classes: str) -> Family:
    return Family(
        classes=classes,
        image_settings=("patch_size", "temporal_patch_size", "merge_size"),
        own_settings=_OWN_TOKENS,
        facts_of_size=_qwen_facts,
        grid_of=_row_of("image_grid_thw"),
        join=joined,
        type_key="mm_token_type_ids",
        positions="mrope",
        wrappers=("<|vision_start|>", "<|vision_end|>"),
        fast_patches=_qwen_patches,
        has_pixel_limits=True,
    )


def _idefics(*classes: str) -> Family:
    return Family(
        classes=classes,
        image_settings=("max_image_size", "do_image_splitting"),
        own_settings=(*_OWN_TOKENS, "image_seq_len", "fake_image_token"),
        facts_of_size=_grid_facts,
        grid_of=_rows_and_columns,
        join=joined_by_row,
    )


_LLAVA_OWN = ("vision_feature_select_strategy", "patch_size", "num_additional_image_tokens")

PROCESSORS: dict[str, Family] = {
    "qwen2_vl": _qwen("Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
    "qwen3_vl": _qwen("Qwen3VLProcessor"),
    "internvl": Family(
        classes=("InternVLProcessor",),
        image_settings=("crop_to_patches", "min_patches", "max_patches"),
        own_settings=(*_OWN_TOKENS, "image_seq_length", "start_image_token", "end_image_token"),
        facts_of_size=_internvl_facts,
        grid_of=_row_of("num_patches"),
        join=joined,
    ),
    "llava": Family(
        classes=("LlavaProcessor",),
        image_settings=(),
        own_settings=(*_OWN_TOKENS, *_LLAVA_OWN),
        facts_of_size=_one_size_facts,
        grid_of=_no_grid,
        join=joined,
    ),
    "llava_next": Family(
        classes=("LlavaNextProcessor",),
        image_settings=("image_grid_pinpoints",),
        own_settings=(*_OWN_TOKENS, *_LLAVA_OWN),
        facts_of_size=_tiled_facts,
        grid_of=_row_of("image_sizes"),
        join=joined_padded,
    ),
    "llava_onevision": Family(
        classes=("LlavaOnevisionProcessor",),
        image_settings=("image_grid_pinpoints",),
        own_settings=(
            *_OWN_TOKENS,
            "num_image_tokens",
            "vision_feature_select_strategy",
            "vision_aspect_ratio",
        ),
        facts_of_size=_tiled_facts,
        grid_of=_row_of("image_sizes"),
        join=joined_by_document,
        by_document=True,
    ),
    "idefics3": _idefics("Idefics3Processor"),
    "smolvlm": _idefics("SmolVLMProcessor"),
    "pixtral": Family(
        classes=("PixtralProcessor",),
        image_settings=(),
        own_settings=(
            *_OWN_TOKENS,
            "patch_size",
            "spatial_merge_size",
            "image_break_token",
            "image_end_token",
        ),
        facts_of_size=_pixtral_facts,
        grid_of=_row_of("image_sizes"),
        join=joined_padded,
    ),
    "gemma3": Family(
        classes=("Gemma3Processor",),
        image_settings=(
            "do_pan_and_scan",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_ratio_to_activate",
        ),
        own_settings=(*_OWN_TOKENS, "image_seq_length"),
        facts_of_size=_gemma_facts,
        grid_of=_row_of("num_crops"),
        join=joined,
        type_key="token_type_ids",
        packs=False,  # transformers 5.24 lays the first document's pictures over all (sliding mask)
    ),
}
"""Every family, by the name that recipes store."""
