"""Vision-language processors: the table of families, and what they make of pictures.

`families.py` is where a new model goes, an entry of what `family.py` asks for; `load.py` finds the
entry for a processor that a user names; `processor.py` asks it for texts (`counting.py`) and arrays
(`joining.py`); `fast.py` makes nearly the same arrays, quicker, by `quick.py`'s ways to cut and
resize; `identity.py` compares two processors; `positions.py` counts for models with
three-dimensional positions. `transformers_door.py` is all that touches transformers.
"""

from shardkit.processors.families import PROCESSORS
from shardkit.processors.family import Arrays, Family, Place
from shardkit.processors.fast import FastPixels
from shardkit.processors.identity import differences, identity_of, settings_of
from shardkit.processors.load import (
    load_processor,
    load_processor_like,
    refuse_other_processor,
)
from shardkit.processors.positions import mrope_positions
from shardkit.processors.processor import Picture, VisionProcessor

__all__ = [
    "PROCESSORS",
    "Arrays",
    "Family",
    "FastPixels",
    "Picture",
    "Place",
    "VisionProcessor",
    "differences",
    "identity_of",
    "load_processor",
    "load_processor_like",
    "mrope_positions",
    "refuse_other_processor",
    "settings_of",
]
