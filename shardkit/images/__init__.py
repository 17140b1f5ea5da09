"""Images: read from below one folder, decoded once, and made ready for a model.

`files` finds what a record names and stores it (or says why not), `decode` turns encoded bytes into
an upright RGB picture within limits, `transform` makes the arrays of CLIP-style towers of it. The
processors of other models are in `shardkit.processors`.
"""

from shardkit.images.decode import BadImage, decode, decode_rgb, measure, upright_size
from shardkit.images.files import ImageStore, expand_to_square
from shardkit.images.transform import ImageTransform

__all__ = [
    "BadImage",
    "ImageStore",
    "ImageTransform",
    "decode",
    "decode_rgb",
    "expand_to_square",
    "measure",
    "upright_size",
]
