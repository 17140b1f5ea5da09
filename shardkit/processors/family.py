"""What is there to know of one family of vision-language processors?

A family is one entry of `PROCESSORS` (families.py): how it is recognised, which settings decide
tokens or pixels, what a picture of a size is called in the text, and how the arrays of several
pictures become one batch. Everything else is the processor's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Arrays = dict[str, NDArray[Any]]
"""What an image processor gives for the pictures of one call, by the model's names."""

Size = tuple[int, int]
"""(width, height) of an upright picture, pixels."""

Facts = Mapping[str, Any]
"""The part of an image processor's output that `replace_image_token` reads."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pictures of a batch stand, in reading order."""

    rows: NDArray[np.int64]
    """(n_pictures,) the row of the batch that each is in, ascending."""
    documents: NDArray[np.int64]
    """(n_pictures,) a number that is equal for pictures of one document, ascending."""
    n_rows: int


Join = Callable[[Sequence[Arrays], Place], Arrays]
"""The arrays of all pictures of a batch, from those of each picture."""

FactsOfSize = Callable[[Any, Mapping[str, Any], Size, int], Facts | None]
"""(processor, its image arguments, size, pictures in the document): facts without pixels.

None: only a blank picture can tell."""

Scale = Callable[[NDArray[Any], NDArray[np.float32]], None]
"""From grey levels (3, height, width) to what the model takes, channel by channel: the second
array is filled."""

QuickPixels = Callable[[Any, Mapping[str, Any], Scale, Image.Image], Arrays | None]
"""(processor, its image arguments, scale, picture): the arrays, within two grey levels.

None: only the processor itself can tell."""

GridOf = Callable[[Mapping[str, Any], int], tuple[int, ...]]
"""(output or facts, picture): how the picture is cut up, as KEY.json stores it."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family; an instance is an entry of PROCESSORS."""

    classes: tuple[str, ...]
    """transformers' processor classes, without suffixes like Fast."""
    image_settings: tuple[str, ...]
    """Attributes of the image processor that decide tokens or pixels, beside `COMMON_SETTINGS`."""
    own_settings: tuple[str, ...]
    """Attributes of the processor itself that decide tokens or pixels."""
    facts_of_size: FactsOfSize
    grid_of: GridOf
    join: Join
    type_key: Literal["mm_token_type_ids", "token_type_ids"] | None = None
    """The key of a batch that tells the model which tokens are pictures; None: it needs none."""
    positions: Literal["flat", "mrope"] = "flat"
    """`mrope`: (4, B, T), the positions in text, then time, height and width (positions.py)."""
    wrappers: tuple[str, ...] = ()
    """Tokens of the chat template around a picture: never parted from it by a cut."""
    has_pixel_limits: bool = False
    """Does it know min_pixels and max_pixels?"""
    packs: bool = True
    """False: transformers does not keep the documents of a pack apart, whatever it is given."""
    quick: QuickPixels | None = None
    """A quicker way than the processor's own cutting and resizing; see quick.py."""
    by_document: bool = False
    """Is a picture treated otherwise when its conversation has several?"""


COMMON_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
)
"""What decides pixels in every family. (Pictures are given as RGB: `do_convert_rgb` does not.)"""
