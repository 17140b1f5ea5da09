"""Quicker ways than the processor's own to cut and resize a picture; the same grey levels.

Each does what the family's image processor does with one picture, with the same function that
resizes (Pillow's or torchvision's), and without what is done for batches: stacks, copies, padding,
tiles that are resized to the size that they have. A function gives None for settings that it does
not know: the processor itself is asked then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardkit.processors.counting import module_of, pixtral_facts, qwen_facts, setting
from shardkit.processors.family import Arrays, Scale

_EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")


class _Cutter:
    """One picture on its way: Pillow's, or a tensor where torchvision resizes."""

    def __init__(self, processor: Any, arguments: Mapping[str, Any], picture: Image.Image) -> None:
        self._processor = processor
        self._arguments = arguments
        self._images = processor.image_processor
        self.image: Any = picture
        self.is_of_pillow = _is_of_pillow(self._images)
        if not self.is_of_pillow:
            self.image = self._images.process_image(picture, do_convert_rgb=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        if self.is_of_pillow:
            return self.image.height, self.image.width
        height, width = self.image.shape[-2:]
        return int(height), int(width)

    def resized(self, height: int, width: int) -> Any:
        """The image of this size; the same where it has it."""
        if self.size == (height, width):
            return self.image
        resample = setting(self._processor, self._arguments, "resample")
        if self.is_of_pillow:
            return self.image.resize((width, height), Image.Resampling(resample))
        size = SimpleNamespace(**{**dict.fromkeys(_EDGES), "height": height, "width": width})
        return _backend(self._images).resize(self._images, self.image, size, resample)

    def grey(self, image: Any) -> NDArray[np.uint8]:
        """(3, height, width) grey levels of an image that `resized` gave."""
        if self.is_of_pillow:
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        return np.asarray(image.numpy())


def _is_of_pillow(images: Any) -> bool:
    return any(cls.__name__.endswith("Pil") for cls in type(images).__mro__)


def _backend(images: Any) -> Any:
    """The class whose `resize` makes a size with torchvision; families' own round the size."""
    found = (cls for cls in type(images).__mro__ if cls.__name__ == "TorchvisionBackend")
    return next(found, None)


def _resizes(processor: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the picture is resized, by a filter and a library that are known."""
    images = processor.image_processor
    names = ("do_resize", "resample")
    is_known = _is_of_pillow(images) or _backend(images) is not None
    return is_known and all(
        setting(processor, arguments, name) not in (None, False) for name in names
    )


def _scaled(scale: Scale, grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(3, height, width) float32: the pixels of such grey levels."""
    out = np.empty(grey.shape, np.float32)
    scale(grey, out)
    return out


def _tiles(
    scale: Scale, cutter: _Cutter, grey: NDArray[np.uint8], height: int, width: int
) -> NDArray[np.float32]:
    """(n, 3, height, width) pixels of all tiles of (3, H, W), row by row, then of the whole
    image as small as a tile, where there are several."""
    rows, columns = grey.shape[1] // height, grey.shape[2] // width
    n = rows * columns
    out = np.empty((n + (n > 1), 3, height, width), np.float32)
    for i in range(n):
        y, x = i // columns * height, i % columns * width
        scale(grey[:, y : y + height, x : x + width], out[i])
    if n > 1:
        scale(cutter.grey(cutter.resized(height, width)), out[n])
    return out


def qwen_patches(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """Qwen's: one resize, then rows of patches, those that are merged beside each other."""
    facts = qwen_facts(processor, arguments, picture.size, 1)
    if facts is None or not _resizes(processor, arguments):
        return None
    patch, merge, times = (
        int(setting(processor, arguments, name))
        for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    rows, columns = (int(n) // merge for n in facts["image_grid_thw"][0, 1:])
    cutter = _Cutter(processor, arguments, picture)
    grey = cutter.grey(cutter.resized(rows * merge * patch, columns * merge * patch))
    # (channel, row, y in block, y in patch, column, x in block, x in patch) becomes
    # (row, column, y in block, x in block, channel, time, y in patch, x in patch)
    cut = _scaled(scale, grey).reshape(3, rows, merge, patch, columns, merge, patch)
    out = np.empty((rows, columns, merge, merge, 3, times, patch, patch), np.float32)
    out[...] = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    return {"pixel_values": out.reshape(rows * columns * merge**2, -1), **facts}


def one_resize(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """Gemma-3's without pan and scan: every picture has the same size."""
    size = setting(processor, arguments, "size") or {}
    if not _resizes(processor, arguments) or setting(processor, arguments, "do_pan_and_scan"):
        return None
    height, width = (size.get(name) for name in ("height", "width"))
    if not height or not width:
        return None
    cutter = _Cutter(processor, arguments, picture)
    grey = cutter.grey(cutter.resized(int(height), int(width)))
    return {"pixel_values": _scaled(scale, grey)[None]}


def pixtral_resize(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """Pixtral's: one resize to whole patches."""
    facts = pixtral_facts(processor, arguments, picture.size, 1)
    cropped = setting(processor, arguments, "do_center_crop")
    if facts is None or cropped or not _resizes(processor, arguments):
        return None
    ((height, width),) = facts["image_sizes"]
    cutter = _Cutter(processor, arguments, picture)
    pixels = _scaled(scale, cutter.grey(cutter.resized(height, width)))
    return {"pixel_values": pixels[None], "image_sizes": np.array([[height, width]])}


def middle(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """LLaVA-1.5's: the shorter edge is resized, and the middle taken."""
    edge = (setting(processor, arguments, "size") or {}).get("shortest_edge")
    crop = setting(processor, arguments, "crop_size")
    if not edge or not crop or not _resizes(processor, arguments):
        return None
    height, width = int(crop["height"]), int(crop["width"])
    if max(height, width) > edge or not setting(processor, arguments, "do_center_crop"):
        return None
    cutter = _Cutter(processor, arguments, picture)
    longer = int(edge * max(picture.size) / min(picture.size))
    is_tall = picture.width <= picture.height
    image = cutter.resized(*((longer, edge) if is_tall else (edge, longer)))
    if cutter.is_of_pillow:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        grey = cutter.grey(image.crop((left, top, left + width, top + height)))
    else:
        size = SimpleNamespace(height=height, width=width)
        grey = cutter.grey(processor.image_processor.center_crop(image, size))
    return {"pixel_values": _scaled(scale, grey)[None]}


def tiles_of_canvas(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """InternVL's: tiles of the nearest canvas, and the whole picture as small as one of them."""
    canvas = getattr(module_of(processor), "get_optimal_tiled_canvas", None)
    tile = setting(processor, arguments, "size") or {}
    limits = [setting(processor, arguments, name) for name in ("min_patches", "max_patches")]
    if canvas is None or None in limits or not _resizes(processor, arguments):
        return None
    height, width = int(tile["height"]), int(tile["width"])
    cutter = _Cutter(processor, arguments, picture)
    columns, rows = 1, 1
    if setting(processor, arguments, "crop_to_patches"):
        columns, rows = canvas(cutter.size, (height, width), *limits)
    grey = cutter.grey(cutter.resized(rows * height, columns * width))
    return {"pixel_values": _tiles(scale, cutter, grey, height, width)}


def split_tiles(
    processor: Any, arguments: Mapping[str, Any], scale: Scale, picture: Image.Image
) -> Arrays | None:
    """Idefics3's: two resizes, tiles, and the whole picture as small as one of them."""
    longest = (setting(processor, arguments, "size") or {}).get("longest_edge")
    edge = (setting(processor, arguments, "max_image_size") or {}).get("longest_edge")
    names = ("do_image_splitting", "do_pad")
    if not longest or not edge or not _resizes(processor, arguments):
        return None
    if not all(setting(processor, arguments, name) for name in names):
        return None
    cutter = _Cutter(processor, arguments, picture)
    first = _longest(processor, cutter, int(longest))
    if first is None:
        return None
    cutter.image = cutter.resized(*first)
    cutter.image = cutter.resized(*_whole_tiles(first, int(edge)))
    pixels = _tiles(scale, cutter, cutter.grey(cutter.image), edge, edge)[None]
    mask = np.ones((1, pixels.shape[1], edge, edge), np.int64)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def _longest(processor: Any, cutter: _Cutter, edge: int) -> tuple[int, int] | None:
    """(height, width) with this longer edge, as the processor rounds it."""
    size_of = getattr(module_of(processor), "get_resize_output_image_size", None)
    if size_of is None:
        return None
    blank = np.broadcast_to(np.uint8(0), (3, *cutter.size))
    found = size_of(blank if cutter.is_of_pillow else cutter.image, resolution_max_side=edge)
    return int(found[0]), int(found[1])


def _whole_tiles(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(height, width) of whole tiles, in nearly the same shape."""
    height, width = size
    ratio = width / height
    if width >= height:
        width = math.ceil(width / edge) * edge
        height = math.ceil(int(width / ratio) / edge) * edge
    else:
        height = math.ceil(height / edge) * edge
        width = math.ceil(int(height * ratio) / edge) * edge
    return height, width
